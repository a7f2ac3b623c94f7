"""The doctor's probes are named in the engines' logs, and nothing else is sent to engines."""

from tests.helpers.doctoring import case


async def test_probes_are_named_in_the_engines_logs_and_nothing_else_is_sent() -> None:
    async with case() as engines:
        await engines.examine()
        for engine in engines.all:
            legs = [seen for seen in engine.seen if seen.path.startswith("/v1/")]
            assert 3 <= len(legs) <= 4
            assert all(seen.headers["X-Request-Id"].startswith("kvproxy-doctor-") for seen in legs)
            assert all(seen.json()["max_tokens"] == 1 for seen in legs)
