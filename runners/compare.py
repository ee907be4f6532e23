"""Compare learners, baselines and encoders on the same queries, with tests of significance.

`python runners/compare.py` runs every method on pydocs with three seeds. Finished methods are kept
in the folder of the comparison: `--resume FOLDER` goes on where it was stopped.
"""

import time

from runners.experiments.comparison_settings import CompareSettings
from runners.experiments.runs import open_run, run_main, write_config


def main(settings: CompareSettings) -> None:
    """Run what is not there yet, then write the report from everything."""
    from maw_gym.encoders.text import text_encoders
    from maw_gym.envs.rendering import check_matplotlib
    from maw_gym.tables.task import load_task, resolve_device
    from runners.experiments.comparison import run_dataset, write_all
    from runners.experiments.fields import checked_field
    from runners.experiments.tables import test_table
    from runners.experiments.writing import reading

    check_matplotlib()
    resolve_device(settings.device)
    fields = [checked_field(dataset, settings.fold_count) for dataset in settings.datasets]
    # What is cheap to open is opened before anything is written.
    text_encoders(settings.text_encoder)
    if settings.encoder != "trained":
        load_task(
            settings.datasets[0],
            settings.encoder,
            settings.device,
            text_encoder=settings.text_encoder,
        )
    folder = open_run(settings, f"compare-{'-'.join(settings.datasets)}")
    provenance = {field.dataset: field.provenance for field in fields}
    write_config(folder, "comparison", settings, provenance, {"encoder": settings.encoder})
    start = time.perf_counter()
    outcomes = [run_dataset(field, settings, folder) for field in fields]
    write_all(outcomes, settings, folder)
    for outcome in outcomes:
        print(f"\n{outcome.field.dataset}\n")
        print(test_table(outcome.rows, settings.tested_against), end="\n\n")
        for sentence in reading(outcome, settings.tested_against):
            print(f"- {sentence}")
    print(f"\n{time.perf_counter() - start:.0f} s; report: {folder / 'report.md'}")


if __name__ == "__main__":
    run_main(CompareSettings, main)
