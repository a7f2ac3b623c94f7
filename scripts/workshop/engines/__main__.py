"""Start real engines by hand and keep them until Ctrl-C.

    python -m scripts.workshop.engines [--plain N] [--prefill N] [--decode N] [--logs DIR] [vLLM flags ...]

Prints where each engine listens and the kvproxy command that joins them.
"""

import argparse
import pathlib
import signal
import sys

from scripts.workshop.checkout import LOGS
from scripts.workshop.engines.fleet import EngineFailedError, Fleet, plan


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.workshop.engines", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--plain", type=int, default=0, help="engines that do both phases alone")
    parser.add_argument("--prefill", type=int, default=2)
    parser.add_argument("--decode", type=int, default=2)
    parser.add_argument("--lease-s", type=int, default=30, help="how long prefilled blocks wait to be pulled")
    parser.add_argument("--lora", action="append", default=[], choices=["alpha", "beta"])
    parser.add_argument("--logs", type=pathlib.Path, default=LOGS)
    args, flags = parser.parse_known_args()
    specs = plan(
        plain=args.plain,
        prefill=args.prefill,
        decode=args.decode,
        lease_s=args.lease_s,
        loras=tuple(args.lora),
        flags=tuple(flags),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job starts with it ignored
    try:
        with Fleet(specs, args.logs) as fleet:
            fleet.start()
            fleet.wait_healthy()
            for spec in specs:
                print(f"{spec.name:10} {spec.address}  events tcp://127.0.0.1:{spec.events_port}", flush=True)
            prefill = " ".join(spec.address for spec in fleet.of_role("prefill"))
            decode = " ".join(spec.address for spec in fleet.of_role("decode"))
            print(f"kvproxy serve --model tiny --prefill {prefill} --decode {decode}", flush=True)
            print("Ctrl-C ends them", flush=True)
            signal.pause()
    except EngineFailedError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
