"""Models for configurations and examples: plain modules, which you can train unchanged or copy.

    mlp(inputs, outputs)            a multilayer perceptron
    LeNet5(channels, classes)       a convolutional network for images of 32 x 32 pixels
    ResNet(channels, classes)       residual blocks with BatchNorm
    UNet(channels, classes)         a class for each pixel
    GPT(vocabulary, context)        a decoder of tokens with tied embeddings
    TextCNN(vocabulary, classes)    convolutions over tokens, and the class of a text

Start reading at `mlp.py`.
"""

from ftrain.tasks.models.gpt import GPT
from ftrain.tasks.models.lenet import LeNet5
from ftrain.tasks.models.mlp import mlp
from ftrain.tasks.models.resnet import ResNet
from ftrain.tasks.models.text_cnn import TextCNN
from ftrain.tasks.models.unet import UNet

__all__ = ["GPT", "LeNet5", "ResNet", "TextCNN", "UNet", "mlp"]
