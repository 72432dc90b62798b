"""The whole lesson, from a folder of photographs to an accuracy, against fastai 2: same body, weights and epochs."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from bench import photographs
from bench.lesson import LessonResult, LessonSetting
from bench.peers.process import PeerProcess
from bench.race import ratios, summary

IMPLEMENTATIONS = {"ours": "lesson_ours", "fastai": "fastai_quick_start", "fastai best": "fastai_best"}
ONCE = "fastai"  # takes minutes; the other two take turns
ROUNDS = 3
ASKED = 20
AS_GOOD = 0.02  # accuracy


def bench_lesson(benchmark: Any, tmp_path: Path, threads: int, quick: bool) -> None:
    folder = photographs.catsdogs(tmp_path / "photos", 40 if quick else None)
    setting = LessonSetting(folder, threads, epochs=2 if quick else 5)
    seconds: dict[str, list[float]] = {name: [] for name in IMPLEMENTATIONS}
    found: dict[str, list[LessonResult]] = {name: [] for name in IMPLEMENTATIONS}

    def round_of(number: int) -> None:
        for name in IMPLEMENTATIONS:
            if name == ONCE and number:
                continue
            taken, result = in_new_process(name, setting, number)
            seconds[name].append(taken)
            found[name].append(result)

    numbers = iter(range(ROUNDS))
    benchmark.pedantic(round_of, setup=lambda: ((next(numbers),), {}), rounds=1 if quick else ROUNDS)
    benchmark.extra_info |= {
        "images": sum(1 for _ in folder.glob("*/*/*.jpg")),
        "epochs": setting.epochs,
        "seconds": seconds,
        "stages": {name: stages_of(results) for name, results in found.items()},
        "ratios": {name: summary(ratios(seconds, name)) for name in IMPLEMENTATIONS if name not in ("ours", ONCE)}
        | {ONCE: summary([seconds[ONCE][0] / seconds["ours"][0]])},
        "accuracy": {name: [result.accuracy for result in results] for name, results in found.items()},
        "loss": {name: [result.loss for result in results] for name, results in found.items()},
        "asked": ASKED,
    }
    if not quick:
        accuracy = {name: median(values) for name, values in benchmark.extra_info["accuracy"].items()}
        assert accuracy["ours"] >= max(accuracy.values()) - AS_GOOD


def in_new_process(name: str, setting: LessonSetting, number: int) -> tuple[float, LessonResult]:
    """Everything is imported before, and nothing is warm."""
    process = PeerProcess(f"bench.peers.{IMPLEMENTATIONS[name]}", setting)
    try:
        return process.round(number)
    finally:
        process.close()


def stages_of(results: list[LessonResult]) -> dict[str, float]:
    """The median time of each stage."""
    return {stage: median(result.stages[stage] for result in results) for stage in results[0].stages}
