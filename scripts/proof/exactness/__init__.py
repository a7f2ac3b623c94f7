"""The proof that kvproxy knows every cache exactly: mixed traffic, what strikes caches and routers, and two witnesses."""
