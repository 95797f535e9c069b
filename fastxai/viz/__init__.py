"""Pictures: maps as colours, grids of images and maps, the demo's figure. Nothing here touches pyplot's state."""

from fastxai.viz.demo import Exhibit as Exhibit
from fastxai.viz.demo import demo_figure as demo_figure
from fastxai.viz.grid import Panel as Panel
from fastxai.viz.grid import Row as Row
from fastxai.viz.grid import grid as grid
from fastxai.viz.grid import save_figure as save_figure
from fastxai.viz.heatmap import heatmap as heatmap
from fastxai.viz.heatmap import overlay as overlay
from fastxai.viz.maps import maps_figure as maps_figure
