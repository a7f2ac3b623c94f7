"""The demo: a few chats through kvproxy on real engines, and all that can be seen of them."""
