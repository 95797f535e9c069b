"""Networks: the CNN of [R], one for [F]'s MNIST, and a trained one for demonstrations."""

from fastxai.models.cnn import CNN as CNN
from fastxai.models.cnn import MNISTCNN as MNISTCNN
from fastxai.models.cnn import he as he
from fastxai.models.demo import CLASSES as CLASSES
from fastxai.models.demo import DEMO_MEAN as DEMO_MEAN
from fastxai.models.demo import DEMO_STD as DEMO_STD
from fastxai.models.demo import demo as demo
