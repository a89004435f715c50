"""Train one side of a pair of models: python train.py side=target data=scenes out=outputs/target."""

from dejavu_lit.cli.train import main

if __name__ == "__main__":
    main()
