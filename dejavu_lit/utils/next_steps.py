"""What a command says at its end: the commands that one runs next."""


def print_next(*steps: str) -> None:
    """Print the steps, one per line; ``…`` in them stands for the options as before."""
    print("next:", *steps, sep="\n  ")
