"""A block's name covers its tokens, its keys, its parent and the engine's seed."""

from proxy.simulation.engine.block_hashes import block_hash, root_hash


def test_the_same_content_has_the_same_name_everywhere() -> None:
    assert block_hash(root_hash("1"), [1, 2], None) == block_hash(root_hash("1"), [1, 2], None)


def test_whatever_differs_gives_another_name() -> None:
    root = root_hash("")
    names = {
        block_hash(root, [1, 2], None),
        block_hash(root, [2, 1], None),
        block_hash(root, [1, 2], ["a"]),
        block_hash(root, [1, 2], ["a", "b"]),
        block_hash(root, [1, 2], ["ab"]),
        block_hash(root_hash("1"), [1, 2], None),
        block_hash(block_hash(root, [1, 2], None), [1, 2], None),
    }
    assert len(names) == 7
