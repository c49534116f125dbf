"""What is drawn while tests are collected, before any of them runs."""

from __future__ import annotations

import drawn
import torch

torch.manual_seed(20 + drawn.SEED)
