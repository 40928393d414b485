"""A small recurrent classifier for the tests: sequences ``[N, T, 4]`` to two logits."""

from torch import nn


class Recurrent(nn.Module):
    """Two layers with dropout, whose fused kernels have no forward-mode rule."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 8, num_layers=2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])
