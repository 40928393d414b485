"""Examples, each a script to run; cifar100 is a folder of them."""
