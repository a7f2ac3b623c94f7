"""An engine whose answer is far too long harms no other engine and no client."""

import msgspec

from proxy.config import Health, parse_instance
from proxy.edge.app_keys import SERVICE
from proxy.phases import Role
from proxy.upstream.bounds import MAX_MODELS_BYTES
from proxy.upstream.engine_api.models import MAX_MODELS
from tests.helpers.service import Rather, engines, fleet, kvproxy, wait_until
from tests.hostile.raw_engine import HEALTHY, answer, raw_engine


async def test_a_prefill_leg_with_more_params_than_its_prompt_can_have_is_tried_elsewhere() -> None:
    params = b'{"kv_transfer_params": {"x": "%s"}}' % (b"x" * (4 << 20))
    async with raw_engine({"/v1/completions": answer(params)}) as bad, engines(prefill=1, decode=1) as made:
        right = made.config(kv_events=False)
        wrong = parse_instance(bad.address, Role.PREFILL)
        config = msgspec.structs.replace(right, instances=(*right.instances, wrong))
        async with kvproxy(config, Rather(bad.address)) as service:
            assert (await service.complete([1, 2, 3])).status == 200
            assert "/v1/completions" in bad.asked
            instance = service.fleet.get(bad.address)
            assert instance is not None
            assert instance.last_failure is not None
            assert "longer than" in instance.last_failure


async def test_status_says_what_was_cut_and_what_was_listed_before_counts() -> None:
    async with raw_engine({}) as bad, engines(prefill=0, decode=1) as made:
        config = made.config(kv_events=False, health=Health(interval_s=0.1))
        wrong = parse_instance(bad.address, Role.PREFILL)
        asked = msgspec.structs.replace(config, instances=(*config.instances, wrong))
        async with kvproxy(asked) as service:
            instance = service.fleet.get(bad.address)
            assert instance is not None
            bad.says["/v1/models"] = answer(b"[" + b"1," * MAX_MODELS_BYTES + b"1]")
            service.app[SERVICE].watch.legs.suspect(instance)
            await wait_until(lambda: instance.unlisted is not None, "a list that is too long")
            shown = {i["instance"]: i for i in (await service.ask("/status")).json["instances"]}[bad.address]
            assert shown["why"] == "its answer to /v1/models is longer than 2 MiB; is this vLLM's --port?"
            assert (shown["state"], shown["model"]) == ("up", "tiny")
            bad.says["/v1/models"] = HEALTHY["/v1/models"]
            service.app[SERVICE].watch.legs.suspect(instance)
            await wait_until(lambda: instance.unlisted is None, "a list that can be read")


async def test_more_models_than_there_can_be() -> None:
    cards = [{"id": f"m{n}"} for n in range(MAX_MODELS + 1)]
    said = answer(msgspec.json.encode({"data": cards}))
    async with raw_engine({"/v1/models": said}) as bad, fleet(1, 1, kv_events=False) as pair:
        added = await pair.service.admin("/instances/add", {"instance": bad.address, "type": "prefill"})
        assert added.status == 400
        assert "lists more than 4096 models" in added.json["error"]["message"]
