"""Resolvers for conf/hydra/launcher/slurm.yaml, which derives tasks, GPUs and CPUs from ``trainer``."""

from omegaconf import OmegaConf

from dejavu_lit.study.slurm import cpus_per_task, gpus_per_node, tasks_per_node


def register_resolvers() -> None:
    """Make ``${slurm_tasks:…}``, ``${slurm_gpus:…}`` and ``${slurm_cpus:…}`` known to conf/hydra/launcher/slurm.yaml."""
    for name, function in (("tasks", tasks_per_node), ("gpus", gpus_per_node), ("cpus", cpus_per_task)):
        OmegaConf.register_new_resolver(f"slurm_{name}", function, replace=True)
