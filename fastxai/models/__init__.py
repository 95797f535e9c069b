"""Networks: the CNN of [R], one for [F]'s MNIST, a trained one for demonstrations; weights to begin with."""

from fastxai.models.cnn import CNN as CNN
from fastxai.models.cnn import MNISTCNN as MNISTCNN
from fastxai.models.demo import CLASSES as CLASSES
from fastxai.models.demo import DEMO_MEAN as DEMO_MEAN
from fastxai.models.demo import DEMO_STD as DEMO_STD
from fastxai.models.demo import demo as demo
from fastxai.models.initialisation import INITIALISATIONS as INITIALISATIONS
from fastxai.models.initialisation import initialise as initialise
