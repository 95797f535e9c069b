"""Images in and out: image files, the photos of the demo, CIFAR-10."""

from fastxai.data.cifar10 import CLASSES as CLASSES
from fastxai.data.cifar10 import cifar10 as cifar10
from fastxai.data.images import fit as fit
from fastxai.data.images import load_image as load_image
from fastxai.data.images import load_images as load_images
from fastxai.data.images import save_png as save_png
from fastxai.data.photos import demo_photos as demo_photos
