"""Train one side of a pair of models: python train.py side=target data=scenes out=outputs/target."""

from dejavu_lit.cli import train

if __name__ == "__main__":
    train()
