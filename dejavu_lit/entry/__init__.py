"""The Hydra entry points behind train.py, evaluate.py, mitigate.py and ``python -m dejavu_lit.…``.

They turn the config's leaves into typed values and call the package; nothing heavy is imported before the settings are
known to be right.
"""

from dejavu_lit.entry import data, duplicates, evaluation, objects, planning, study, training
from dejavu_lit.entry.frame import command

train = command("train", training.train)
evaluate = command("evaluate", evaluation.evaluate)
mitigate = command("mitigate", study.mitigate)
prepare = command("prepare", data.prepare)
plan = command("plan", planning.plan)
annotate = command("annotate", objects.annotate)
dedup = command("dedup", duplicates.dedup)
