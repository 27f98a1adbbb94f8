from typing import Any

from distilljax.core.method import Method
from distilljax.methods.adversarial import ladd as ladd
from distilljax.methods.anchored import facm as facm
from distilljax.methods.composed import rcm as rcm
from distilljax.methods.composed import sana_sprint as sana_sprint
from distilljax.methods.consistency import cm_cd as cm_cd
from distilljax.methods.consistency import lcm as lcm
from distilljax.methods.consistency import scm as scm
from distilljax.methods.consistency_training import cm_ct as cm_ct
from distilljax.methods.consistency_training import ect as ect
from distilljax.methods.consistency_training import ict as ict
from distilljax.methods.distribution import dmd2 as dmd2
from distilljax.methods.distribution import gdmd as gdmd
from distilljax.methods.distribution import sid as sid
from distilljax.methods.dual_end import de_cm as de_cm
from distilljax.methods.flow_maps import mean_flow as mean_flow
from distilljax.methods.halving import shortcut as shortcut
from distilljax.methods.policy import pi_flow as pi_flow
from distilljax.methods.registry import Entry as Entry
from distilljax.methods.regression import denoising as denoising
from distilljax.methods.regression import flow_matching as flow_matching
from distilljax.methods.restoration import tsd_sr as tsd_sr
from distilljax.methods.score_matching import diff_instruct as diff_instruct
from distilljax.methods.score_matching import dmd as dmd
from distilljax.methods.score_matching import f_distill as f_distill
from distilljax.methods.score_matching import tdm as tdm
from distilljax.methods.trajectories import progressive as progressive
from distilljax.methods.trajectories import reflow as reflow
from distilljax.methods.trajectory_consistency import ctm as ctm
from distilljax.methods.two_time import ayf_emd as ayf_emd
from distilljax.methods.two_time import ayf_lmd as ayf_lmd

CATALOGUE: dict[str, Entry]

def build(name: str, **options: Any) -> Method: ...
