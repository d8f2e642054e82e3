#!/usr/bin/env python3
"""Give an engine requests and images that atheris makes up, for as long as you like.

Usage: pip install '.[fuzz]' && python fuzz/fuzz_requests.py [-max_total_time=3600] [CORPUS_FOLDER]

The same abuse as tests/faults/test_mutations.py, guided by coverage: each input says which of the
right sessions to start from and how to change its requests and its pages image. Whatever is not
right bytes or a clean error ends the run with the input that did it.
"""

import pathlib
import sys

import atheris

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

with atheris.instrument_imports(include=["helperd"]):
    from tests.support.abuse import bench, mutate, samples


def main() -> None:
    """Fuzz until told to stop."""
    with bench() as one:
        originals = samples(one)

        def abuse(data: bytes) -> None:
            provider = atheris.FuzzedDataProvider(data)

            def choose(n: int) -> int:
                return provider.ConsumeIntInRange(0, n - 1)

            stream, image = originals[choose(len(originals))]
            if provider.ConsumeBool():
                stream = mutate(stream, choose)
            if provider.ConsumeBool():
                image = mutate(image, choose)
            one.check(stream, image)

        atheris.Setup(sys.argv, abuse)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
