"""Another metric is one declaration over what is told already, and its lines go with their instances.

No room is touched for it: it is declared where it is wanted and given to `assemble`, here by `create_app`.
"""

from proxy.happenings import Checked
from proxy.observability.series import counter
from tests.helpers.service import Service, fleet, wait_until

LOOKS = counter("looks_taken", "Checks that were answered.", Checked, "finding", per_instance=True)


async def lines(service: Service, name: str, address: str) -> list[str]:
    page = (await service.ask("/metrics")).body.decode()
    return [line for line in page.splitlines() if line.startswith(f"kvproxy_{name}") and address in line]


async def test_a_series_is_served_and_ends_with_its_instance() -> None:
    async with fleet(prefill=1, decode=2, kv_events=False, series=[LOOKS]) as pair:
        going, staying = (engine.address for engine in pair.engines.decode)
        for address in (going, staying):
            (line,) = await lines(pair.service, "looks_taken", address)
            assert line.startswith(f'kvproxy_looks_taken_total{{finding="answered",instance="{address}"}}')
        removed = await pair.service.admin("/instances/remove", {"instance": going, "force": True})
        assert removed.status == 200
        await wait_until(lambda: pair.service.fleet.get(going) is None, "its end")
        assert not await lines(pair.service, "looks_taken", going)
        assert await lines(pair.service, "looks_taken", staying)
