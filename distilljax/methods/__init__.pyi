from typing import Any

from distilljax.core.method import Method
from distilljax.methods.adversarial.ladd import ladd as ladd
from distilljax.methods.composed.rcm import rcm as rcm
from distilljax.methods.composed.sana_sprint import sana_sprint as sana_sprint
from distilljax.methods.consistency.cm_cd import cm_cd as cm_cd
from distilljax.methods.consistency.cm_ct import cm_ct as cm_ct
from distilljax.methods.consistency.de_cm import de_cm as de_cm
from distilljax.methods.consistency.ect import ect as ect
from distilljax.methods.consistency.facm import facm as facm
from distilljax.methods.consistency.ict import ict as ict
from distilljax.methods.consistency.lcm import lcm as lcm
from distilljax.methods.consistency.scm import scm as scm
from distilljax.methods.flow_map.ayf_emd import ayf_emd as ayf_emd
from distilljax.methods.flow_map.ayf_lmd import ayf_lmd as ayf_lmd
from distilljax.methods.flow_map.mean_flow import mean_flow as mean_flow
from distilljax.methods.flow_map.shortcut import shortcut as shortcut
from distilljax.methods.matching.diff_instruct import diff_instruct as diff_instruct
from distilljax.methods.matching.dmd import dmd as dmd
from distilljax.methods.matching.dmd2 import dmd2 as dmd2
from distilljax.methods.matching.f_distill import f_distill as f_distill
from distilljax.methods.matching.sid import sid as sid
from distilljax.methods.matching.tdm import tdm as tdm
from distilljax.methods.registry import Entry as Entry
from distilljax.methods.regression.denoising import denoising as denoising
from distilljax.methods.regression.flow_matching import flow_matching as flow_matching
from distilljax.methods.restoration.tsd_sr import tsd_sr as tsd_sr
from distilljax.methods.reward.gdmd import gdmd as gdmd
from distilljax.methods.trajectory.ctm import ctm as ctm
from distilljax.methods.trajectory.pi_flow import pi_flow as pi_flow
from distilljax.methods.trajectory.progressive import progressive as progressive
from distilljax.methods.trajectory.reflow import reflow as reflow

CATALOGUE: dict[str, Entry]

def build(name: str, **options: Any) -> Method: ...
