"""JEDI, joint experts over several data sets (Bicsi et al. 2023): experts -> joint -> compare -> report, and export.

Every set has an expert, trained alone until its validation score stops. The experts are the first students of the joint
stage, in which a teacher per set reads the features of all of them. Arms are further joint stages from the same experts with
other settings, of as many steps: without distillation, with shuffled answers, with frozen backbones. A task is a set.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from must.core import devices
from must.core.types import Model, Objective, PyTree, Source, UserError
from must.data.combine import Concat
from must.data.pipeline import Encoder
from must.evaluate.evaluate import summarize
from must.evaluate.joint import ARM
from must.models.experts import Expert, Experts, experts
from must.models.over_clips import over_clips
from must.objectives.joint import GRADIENTS, joint
from must.objectives.supervised import supervised
from must.core.types import Policy
from must.recipes import built, checks, joint_page, joint_stage, measuring, overlaps, setup, stages
from must.recipes.jobs import Job
from must.recipes.selection import Judge
from must.tasks.classification import Classification

STAGES = ("experts", "joint", "compare", "report", "export")
Config = Mapping[str, Any]

# What the joint stage may say besides how it trains; the first ones are arguments of `must.objectives.joint.joint`.
OBJECTIVE = {
    "distill": 1.0, "student": 1.0, "teacher": 1.0, "temperature": 1.0, "teacher_gradient": "all", "threshold": 0.0,
    "own_set": False, "ema_decay_teacher": 0.0, "shuffled": False,
}  # fmt: skip
