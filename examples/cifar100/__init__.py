"""The paper's experiment on CIFAR-100: every label source on any pair of its hierarchy's levels."""
