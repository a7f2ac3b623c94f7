"""The chats of the demo, and the order in which their turns happen to arrive."""

import dataclasses
import random
from collections.abc import Iterator

Message = dict[str, str]

_SUPPORT = (
    "You are the support desk of a small company that sells garden tools. Be brief and friendly. "
    "Orders leave the house on the day they come in if they come in before noon. A tool may be sent back "
    "within thirty days, also when it was used. Spare parts are listed by the number on the handle. "
    "Never promise a refund before the tool has arrived, and never guess a part number."
)
_TUTOR = (
    "You teach Python to people who have never programmed. Explain one idea at a time, with the shortest "
    "example that shows it. Do not use words that you have not explained. When the learner is wrong, ask a "
    "question that lets them see it. Keep to the standard library and to Python three."
)
_COOK = (
    "You help people to cook with what they have at home. Ask what is in the kitchen before you propose "
    "anything. Give amounts for two people, in spoons and cups, and times in minutes. Say clearly when "
    "something can burn, spoil or make ill. If a thing is missing, name what can stand in for it."
)


@dataclasses.dataclass(frozen=True)
class Chat:
    """What one user says, turn by turn, below a system prompt that other users may share."""

    name: str
    system: str
    says: tuple[str, ...]


CHATS = (
    Chat(
        "Ada",
        _SUPPORT,
        (
            "Hello, I ordered a spade and two rakes and only the rakes have come. Where is the spade now?",
            (
                "Thank you. If it does not come by Friday I would rather send the rakes back as well. Is "
                "that possible?"
            ),
            "And one more thing: the handle of one rake is loose. Is there a part for that?",
            "Good. Please write all of this in one message that I can keep.",
        ),
    ),
    Chat(
        "Bob",
        _SUPPORT,
        (
            "Which of your shears would you take for a hedge of yew that was not cut for ten years?",
            "I have used the other ones twice and they pinch. Can I still return them?",
            "All right, then please tell me how to pack them so that nobody gets hurt.",
        ),
    ),
    Chat(
        "Cleo",
        _TUTOR,
        (
            "What is a variable? My friend says it is a box, but then how can two names mean the same list?",
            "So when I write b = a nothing is copied? How would I make a copy then?",
            "I tried it with a list inside a list and the inner one still changed in both. Why?",
            "Show me how to see that with the smallest program you can think of.",
        ),
    ),
    Chat(
        "Dan",
        _TUTOR,
        (
            "How do I read a file with numbers, one on each line, and add them up?",
            "It says ValueError because of an empty line at the end. What should I do about it?",
            "Which of the two ways would you choose if the file had a million lines?",
        ),
    ),
    Chat(
        "Eve",
        _COOK,
        (
            "I have rice, two onions, a tin of tomatoes and half a cabbage. What can I make in half an hour?",
            "There is no garlic in the house. And may I take the brown rice instead of the white?",
            "It has begun to smell burnt at the bottom. What now?",
        ),
    ),
    Chat(
        "Finn",
        _COOK,
        (
            "How long do I boil potatoes for a salad, and with or without the skin?",
            "And the eggs? I would like them firm but not dry.",
        ),
    ),
)


def arrivals(seed: int = 4) -> Iterator[tuple[Chat, int]]:
    """Each chat's turns in order, the chats mixed as people type: not in a rhythm that suits any policy."""
    order = [chat for chat in CHATS for _ in chat.says]
    random.Random(seed).shuffle(order)  # noqa: S311  # the same order in every run
    turns = dict.fromkeys(CHATS, 0)
    for chat in order:
        yield chat, turns[chat]
        turns[chat] += 1


def opening(chat: Chat) -> list[Message]:
    return [{"role": "system", "content": chat.system}]
