"""Images in and out: image files, the photos of the demo, labelled data sets, noise."""

from fastxai.data.cifar10 import CLASSES as CLASSES
from fastxai.data.cifar10 import cifar10 as cifar10
from fastxai.data.images import fit as fit
from fastxai.data.images import load_image as load_image
from fastxai.data.images import load_images as load_images
from fastxai.data.images import save_png as save_png
from fastxai.data.labelled import Labelled as Labelled
from fastxai.data.labelled import labelled as labelled
from fastxai.data.noise import noisy as noisy
from fastxai.data.npz import save_npz as save_npz
from fastxai.data.photos import demo_photos as demo_photos
