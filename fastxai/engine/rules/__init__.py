"""Rules: how relevance goes down through a node, each with its exact adjoint; one file each."""

from fastxai.engine.rules._rule import Rule as Rule
from fastxai.engine.rules._rule import Site as Site
from fastxai.engine.rules._rule import Sources as Sources
from fastxai.engine.rules.alpha_beta import AlphaBeta as AlphaBeta
from fastxai.engine.rules.composite import COMPOSITES as COMPOSITES
from fastxai.engine.rules.composite import Composite as Composite
from fastxai.engine.rules.composite import lrp as lrp
from fastxai.engine.rules.epsilon import Epsilon as Epsilon
from fastxai.engine.rules.gamma import Gamma as Gamma
from fastxai.engine.rules.guided_backprop import GuidedBackprop as GuidedBackprop
from fastxai.engine.rules.pass_through import PassThrough as PassThrough
from fastxai.engine.rules.pattern_attribution import PatternAttribution as PatternAttribution
from fastxai.engine.rules.pattern_attribution import Patterned as Patterned
from fastxai.engine.rules.pattern_attribution import weight_name as weight_name
from fastxai.engine.rules.proportional import OWN as OWN
from fastxai.engine.rules.proportional import Group as Group
from fastxai.engine.rules.proportional import Proportional as Proportional
from fastxai.engine.rules.proportional import Term as Term
from fastxai.engine.rules.z_box import ZBox as ZBox
from fastxai.engine.rules.z_plus import ZPlus as ZPlus
