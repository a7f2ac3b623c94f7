"""What msgspec says of a member, in the order in which people read it: the member, then what is wrong."""

import msgspec


def worded(error: msgspec.MsgspecError) -> str:
    """`hash_ids[2]: expected int, got str`, say."""
    what, _, where = str(error).partition(" - at `$")
    what = what.replace("`", "")
    if member := where.removesuffix("`").removeprefix("."):
        return f"{member}: {what[:1].lower()}{what[1:]}"
    return what
