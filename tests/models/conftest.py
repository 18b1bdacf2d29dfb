"""The tests' matrices are tiny: a second thread only waits, and waits long where the machine is busy."""

import torch

torch.set_num_threads(1)
