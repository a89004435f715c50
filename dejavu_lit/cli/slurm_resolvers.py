"""Resolvers for conf/hydra/launcher/slurm.yaml, which derives tasks, GPUs and CPUs from ``trainer``."""

from omegaconf import OmegaConf

from dejavu_lit.study.slurm import cpus, gpus, tasks


def register_resolvers() -> None:
    """Make ``${slurm_tasks:…}``, ``${slurm_gpus:…}`` and ``${slurm_cpus:…}`` known to conf/hydra/launcher/slurm.yaml."""
    for name, function in (("tasks", tasks), ("gpus", gpus), ("cpus", cpus)):
        OmegaConf.register_new_resolver(f"slurm_{name}", function, replace=True)
