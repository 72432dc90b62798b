"""The limit: files are read and decoded, and nothing else is done, by DALI's libjpeg-turbo on all threads."""

from __future__ import annotations

from collections.abc import Callable

from nvidia.dali import fn, pipeline_def, types

from bench.pictures_setting import PicturesSetting


def make(setting: PicturesSetting) -> Callable[[int], list[float]]:
    files = setting.files()

    @pipeline_def(batch_size=setting.batch, num_threads=setting.threads, device_id=None)
    def graph():  # type: ignore[no-untyped-def]
        return fn.decoders.image(fn.readers.file(files=files)[0], device="cpu", output_type=types.RGB)

    built = graph()
    built.build()

    def run(_: int) -> list[float]:
        for _ in range(len(files) // setting.batch):
            built.run()
        return []

    return run
