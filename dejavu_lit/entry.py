"""The Hydra entry points behind train.py, evaluate.py, mitigate.py and ``python -m dejavu_lit.…``.

They read the config, turn its leaves into typed values and call the package; nothing heavy is imported before the
settings are known to be right.
"""

import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dejavu_lit.errors import UserError, suggest
from dejavu_lit.typed import build, check_fields

HERE = Path(__file__).resolve().parent
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"

AFTER = ("out", "sweep", "utility_loss", "report", "fail_if")  # settings of an evaluation that no figure depends on

log = logging.getLogger(__name__)


def _command(config_name: str, task: Callable[[DictConfig, Path], None]) -> Callable[[], None]:
    """A command: Hydra reads the config, ``task`` does the work, and a user's mistake ends as one sentence."""

    def job(cfg: DictConfig) -> None:
        try:
            task(cfg, _out(cfg))
        except UserError as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise  # the launcher notes it and goes on with the other jobs
            _fail(str(error))

    def command() -> None:
        sys.argv[1:] = [_quoted(argument) for argument in sys.argv[1:]]
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let exceptions through to the lines below
        warnings.filterwarnings("ignore", category=UserWarning, module="hydra")
        try:
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
        except UserError as error:
            _fail(str(error))
        except (HydraException, OmegaConfBaseException) as error:
            _fail(_explain(error, config_name))
        except OSError as error:  # a full disk, a read-only folder, a file where a folder should be
            _fail(f"{error.filename or 'a file'}: {error.strerror or error}")

    job.__module__, job.__qualname__ = __name__, f"_{config_name}_job"
    globals()[job.__qualname__] = job  # launchers that pickle the job find it by its name
    command.__name__ = config_name
    command.__doc__ = task.__doc__
    return command


def _quoted(argument: str) -> str:
    """``fail_if=a>0`` as Hydra's grammar wants it, in quotes of its own; anything else as it is."""
    name, _, text = argument.partition("=")
    return f"{name}='{text}'" if name == "fail_if" and text[:1] not in ("'", '"') else argument


def _fail(sentence: str) -> None:
    if "Original Traceback" in sentence:  # of a loader's worker: its last line is the sentence
        sentence = sentence.strip().splitlines()[-1].partition("UserError: ")[2] or sentence
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(1)


def _explain(error: Exception, config_name: str) -> str:
    """A configuration error as one sentence, with the option that was probably meant."""
    said = str(error.__cause__ or error).split("Config search path:")[0]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    text = " ".join(line for line in lines if not line.startswith(("full_key:", "object_type=", "To append")))
    group = re.search(r"Could not find '(\w+)/([^']*)' Available options in '\w+': (.*)", text)
    if group:
        name, wanted, known = group.groups()
        return f"{name}={wanted} is unknown{suggest(wanted, known.split())}; there are {', '.join(known.split())}"
    for argument in sys.argv[1:]:
        name = argument.lstrip("+~").split("=")[0]
        if name and name in str(error):
            options = _options(config_name)
            return f"{argument}: {text}{suggest(name, options) if name not in options else ''}"
    return text


def _options(config_name: str) -> list[str]:
    """Every option of a command's default config, dotted."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(config_name)

    def walk(node: Any, path: str) -> list[str]:
        if not isinstance(node, dict):
            return [path]
        return [path] * bool(path) + [p for k, v in node.items() for p in walk(v, f"{path}.{k}" if path else str(k))]

    return walk(OmegaConf.to_container(config, resolve=False), "")


def _out(cfg: DictConfig) -> Path:
    """The output directory: ``out=``, with the job's own folder below it in a multirun; else one below outputs/."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        base = Path(cfg.out) if cfg.get("out") else Path(hydra_config.sweep.dir)
        return base / hydra_config.sweep.subdir
    if cfg.get("out"):
        return Path(cfg.out)
    from time import strftime

    return Path("outputs") / (hydra_config.job.config_name or "run") / strftime("%Y-%m-%d_%H-%M-%S")


def _plain(cfg: DictConfig) -> dict[str, Any]:
    missing = sorted(key for key in OmegaConf.missing_keys(cfg) if not key.startswith("data."))
    if missing:
        raise UserError(f"{missing[0]} is missing; give {missing[0]}=…")
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _data_spec(config: dict[str, Any]) -> Any:
    """The DataSpec, its reader left as a description; data that needs no source is prepared where it is absent."""
    spec = build({**config, "_recursive_": False}, "data")
    if spec.automatic and not (spec.folder / "manifest.json").is_file():
        _prepare_data(spec)
    return spec


def _prepare_data(spec: Any, **how: Any) -> None:
    from dejavu_lit.files import locked
    from dejavu_lit.prepare import prepare

    if spec.reader is None:
        raise UserError(f"data={spec.name} has no reader; choose data=coco, folder, table or shards to prepare from")
    spec.folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(spec.folder.parent / f".{spec.folder.name}.lock"):  # ranks and jobs that start together: one prepares
        prepare(
            reader=build(spec.reader, "data.reader"),
            out=spec.folder,
            sizes=spec.sizes,
            seed=spec.seed,
            near_duplicates=spec.near_duplicates,
            extra={name: build(reader, f"data.extra.{name}") for name, reader in spec.extra.items()},
            **how,
        )


def _train(cfg: DictConfig, out: Path) -> None:
    """Train one model."""
    config = _plain(cfg)
    _refuse_own_launcher(config)
    if config["out"] is None and config["trainer"]["devices"] != 1 and HydraConfig.get().mode == RunMode.RUN:
        raise UserError("several processes need one directory that all of them know; give out=DIR")
    _run_training(config, out)


def _run_training(config: dict[str, Any], out: Path) -> None:
    """Train, or go on, in ``out``; the small parts are built first, so that a wrong option ends at once."""
    if config["side"] not in ("target", "reference"):
        raise UserError(f"side={config['side']} must be target (trains on A) or reference (trains on B)")
    if not isinstance(config["seed"], int):
        raise UserError(f"seed={config['seed']} must be a whole number")
    from dejavu_lit.launch import run_directory

    config = {key: value for key, value in config.items() if key != "out"}
    parts = {name: build(config[name], name) for name in ("mitigation", "model", "recipe", "trainer")}
    data = _data_spec(config["data"])
    with run_directory(out, config):
        from dejavu_lit.train import train as run

        run(
            out=out,
            side=config["side"],
            data=data,
            seed=config["seed"],
            wandb=config["logger"]["wandb"],
            config=config,
            **parts,
        )


def resume(out: Path) -> None:
    """Go on with the run in ``out`` from the configuration saved there."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("dejavu_lit").setLevel(logging.INFO)
    from dejavu_lit.launch import read_config

    try:
        _run_training(read_config(out), out)
    except UserError as error:
        _fail(str(error))


def _refuse_own_launcher(config: dict[str, Any]) -> None:
    """Hydra's multirun and Lightning's own process launcher would start each other over and over."""
    launched = {"SLURM_PROCID", "TORCHELASTIC_RUN_ID"} & set(os.environ)
    several = config["trainer"]["devices"] != 1 or config["trainer"]["num_nodes"] != 1
    if HydraConfig.get().mode == RunMode.MULTIRUN and several and not launched:
        raise UserError(
            "--multirun cannot start several processes a job by itself; use hydra/launcher=submitit_slurm with "
            "hydra.launcher.tasks_per_node equal to trainer.devices, or one device a job (trainer.devices=1)"
        )


def _evaluate(cfg: DictConfig, out: Path) -> None:
    """Measure how much the target remembers beyond the reference."""
    config = _plain(cfg)
    if config["sweep"] is not None:
        from dejavu_lit.study import pair_runs

        cells, alone = pair_runs(Path(config["sweep"]))
        for path in alone:
            log.warning("%s has no partner (the same settings with the other side); left out", path)
        if not cells:
            raise UserError(f"no two runs below {config['sweep']} differ in side alone; train the missing sides")
        target = Path(config["sweep"]) if cfg.get("out") is None else out
        _evaluate_study(target, {"evaluate": config, "utility_loss": config["utility_loss"]}, cells, {})
        return
    if absent := [name for name in ("target", "reference") if config[name] is None]:
        raise UserError(f"{absent[0]} is missing; give {absent[0]}=RUN or a model")
    from dejavu_lit.report.gate import EXIT_CODE, Gate
    from dejavu_lit.summary import show

    gate = Gate.parse(config["fail_if"]) if config["fail_if"] else None
    metrics = _run_evaluation(config, out)
    show(metrics, out)
    _write_report(config, out)
    if gate is not None and gate.fails(metrics):
        print(f"fail_if holds: {gate.text}", file=sys.stderr)
        sys.exit(EXIT_CODE)


def _write_report(config: dict[str, Any], out: Path) -> None:
    """The page of an evaluation or a study, as ``report`` asks for it."""
    if not config["report"]["write"]:
        return
    from dejavu_lit.report.write import write_report

    page = write_report(out, redact=config["report"]["redact"])
    print(f"report: {page}")


def _run_evaluation(config: dict[str, Any], out: Path) -> Any:
    """Evaluate one pair of models in ``out``: the contents of metrics.json."""
    from dataclasses import fields

    from dejavu_lit.evaluate import Comparison
    from dejavu_lit.evaluate import evaluate as run
    from dejavu_lit.files import locked
    from dejavu_lit.measure.metrics import Settings

    values = {name: config[name] for name in ("k", "ks", "threshold", "top_m")} | config["statistics"]
    check_fields(Settings, values, "evaluate.py")
    try:
        if values["k"] not in values["ks"]:
            values["ks"] = sorted([*values["ks"], values["k"]])
        settings = Settings(**values)
    except (TypeError, ValueError) as error:
        raise UserError(f"k, ks, threshold, top_m or statistics has a value of the wrong type ({error})") from None
    comparison = Comparison(**{field.name: config[field.name] for field in fields(Comparison)})
    data = _evaluated_data(config["data"], comparison)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", wait=False):
        return run(out, comparison, data, config["objects"], settings, _settings(config, data), config.get("keys"))


def _settings(config: dict[str, Any], data: Any) -> dict[str, Any]:
    """The settings that are saved: the data as they turned out, and nothing of where or how."""
    from dataclasses import asdict

    return {k: v for k, v in config.items() if k not in AFTER} | {"data": asdict(data) | {"dir": str(data.folder)}}


def _evaluated_data(config: dict[str, Any], comparison: Any) -> Any:
    """The data of ``data=…``; by default the target run's own, with the options given beside it."""
    if config.get("_target_"):
        return _data_spec(config)
    from dataclasses import replace

    from dejavu_lit.sides import Side

    data = Side(comparison.target, Path()).data
    if data is None:
        raise UserError(
            f"target={comparison.target} is no run of train.py; say which data: data=scenes|coco|prepared …"
        )
    return replace(data, **{name: value for name, value in config.items() if value is not None})


def _plan(cfg: DictConfig, out: Path) -> None:
    """Say how many records and seed pairs a gap needs to be seen."""
    from dejavu_lit import plan

    config = _plain(cfg)
    print(plan.show(plan.plan(config["metrics"], config["gap"], config["power"], config["figure"])))


def _prepare(cfg: DictConfig, out: Path) -> None:
    """Turn pictures and captions into shards and splits."""
    config = _plain(cfg)
    if absent := sorted(k for k in OmegaConf.missing_keys(cfg)):
        raise UserError(f"{absent[0]} is missing; give {absent[0]}=…")
    spec = build({**config.pop("data"), "_recursive_": False}, "data")
    _prepare_data(spec, **config)


def _mitigate(cfg: DictConfig, out: Path) -> None:
    """Train and evaluate every setting, and rank them."""
    config = _plain(cfg)
    if config["launcher"] != "local":
        raise UserError(
            f"launcher={config['launcher']} is not known; use launcher=local, or train.py -m with a launcher of Hydra"
        )
    from dejavu_lit import study
    from dejavu_lit.files import locked
    from dejavu_lit.launch import identity

    if not config["settings"]:
        raise UserError(
            "there are no settings; choose experiment=NAME, or name some: +settings.mask=['mitigation.text_mask=0.5']"
        )
    runs: dict[Path, dict[str, Any]] = {}
    known: dict[str, Path] = {}
    cells = []
    for name, overrides in config["settings"].items():
        for size in config["sizes"]:
            for seed in config["seeds"]:
                cell = study.Cell(name, tuple(overrides), size, seed, out, out)
                paths = {}
                for side in study.SIDES:
                    settings = _run_config(overrides, side, size, seed)
                    path = known.setdefault(identity(settings), out / "runs" / f"{cell.label}-{side}")
                    paths[side] = path
                    runs.setdefault(path, settings)
                cells.append(study.Cell(name, tuple(overrides), size, seed, **paths))
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", wait=False):
        _data_spec(next(iter(runs.values()))["data"])
        failed = study.train_missing(runs)
        _evaluate_study(out, config, cells, failed)


def _run_config(overrides: list[str], side: str, size: int | None, seed: int) -> dict[str, Any]:
    """The configuration of one run: this command's own, with the setting's overrides on top."""
    given = list(HydraConfig.get().overrides.task)
    composed = hydra.compose("mitigate", [*given, *overrides])
    config = _plain(composed)
    own = {name: config[name] for name in ("data", "model", "recipe", "mitigation", "trainer", "logger")}
    own["data"] = {**own["data"], "train_size": size if size is not None else own["data"]["train_size"]}
    return {**own, "side": side, "seed": seed}


def _evaluate_study(out: Path, config: dict[str, Any], cells: list[Any], failed: dict[Path, str]) -> None:
    from dejavu_lit import study
    from dejavu_lit.summary import show_study

    def one(cell: Any, folder: Path) -> Any:
        return _run_evaluation(
            {**config["evaluate"], "target": str(cell.target), "reference": str(cell.reference)}, folder
        )

    rows, lost = study.evaluate_cells(out, cells, one, failed)
    if rows:
        show_study(study.conclude(out, rows, lost, config["utility_loss"]), out)
        _write_report(config["evaluate"], out)
    if lost:
        raise UserError(
            f"{len(lost)} of {len(cells)} settings have no result: "
            + "; ".join(f"{label} ({why})" for label, why in lost.items())
        )


train = _command("train", _train)
evaluate = _command("evaluate", _evaluate)
prepare = _command("prepare", _prepare)
mitigate = _command("mitigate", _mitigate)
plan = _command("plan", _plan)
