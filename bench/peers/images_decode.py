"""The limit: files are read and decoded, and nothing else is done, by DALI's libjpeg-turbo on all threads."""

from __future__ import annotations

from collections.abc import Callable

from nvidia.dali import fn, pipeline_def, types

from bench.images_setting import ImagesSetting

AHEAD = 2  # batches in the making while one is waited for


def make(setting: ImagesSetting) -> Callable[[int], list[float]]:
    files = setting.files()

    # Left to itself DALI decodes two batches more after each round, which the next one would get for nothing.
    @pipeline_def(batch_size=setting.batch, num_threads=setting.threads, device_id=None, prefetch_queue_depth=1)
    def graph():  # type: ignore[no-untyped-def]
        return fn.decoders.image(fn.readers.file(files=files)[0], device="cpu", output_type=types.RGB)

    built = graph()
    built.build()

    def run(_: int) -> list[float]:
        batches = len(files) // setting.batch
        for number in range(batches + AHEAD):
            if number < batches:
                built.schedule_run()
            if number >= AHEAD:
                built.share_outputs()
                built.release_outputs()
        return [float(batches * setting.batch)]

    return run
