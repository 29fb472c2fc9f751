"""What the tests of the command line share."""

SMALL = ("--data.workers", 0, "--trainer.epochs", 1, "--trainer.tensorboard", False)
