"""The numbers both sides rebuild instead of storing: one integer hash, turned into doubles.

The invariant: value(tensor, element) depends on two integers only, and every step is exact or
correctly rounded, so formula.h gives the same double bit for bit. Only then is a value rounded to
the wanted dtype.

    mix(z):  z ^= z >> 30;  z *= 0xBF58476D1CE4E5B9;
             z ^= z >> 27;  z *= 0x94D049BB133111EB;  z ^= z >> 31            (all modulo 2^64)
    bits(t, e)  = mix(mix((t + 1) * G) + (e + 1) * G)          G = 0x9E3779B97F4A7C15
    unit(t, e)  = (bits(t, e) >> 11) * 2^-52 - 1               a double in [-1, 1), 53 bits
    value(t, e) = shift + scale * unit(t, e)                   in double: one multiply, then one add

t is a tensor number, e the element's place in logical row-major order (NCHW, OIHW). The mixer is
the finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
2014).

ResNet weights: t is the entry's place in the state_dict (num_batches_tracked counts too), and
    conv weight         scale sqrt(6 / fan_out), shift 0; fan_out = out_channels * kh * kw
                        (the variance, 2 / fan_out, is Kaiming's)
    batch-norm weight   scale 0.1, shift 1
    batch-norm bias     scale 0.1, shift 0
    running_mean 0, running_var 1, num_batches_tracked 0
    fc weight, fc bias  scale 1 / sqrt(in_features), shift 0
Images of the parity batch: t = kImages, scale sqrt(3), shift 0 (unit variance). Target i: i mod 10.
Sampled entry s of tensor number t (a state_dict place): element bits(kSamples + t, s) mod numel.
"""

import math

import numpy as np

IMAGES = 1000  # tensor number of the parity batch
SAMPLES = 2000  # + place in state_dict: which entries of a tensor are sampled
SAMPLE_COUNT = 16

_G = np.uint64(0x9E3779B97F4A7C15)
_A = np.uint64(0xBF58476D1CE4E5B9)
_B = np.uint64(0x94D049BB133111EB)


def _mix(z):
    z = (z ^ (z >> np.uint64(30))) * _A
    z = (z ^ (z >> np.uint64(27))) * _B
    return z ^ (z >> np.uint64(31))


def bits(tensor, count):
    """The first `count` hashes of a tensor number, as uint64."""
    with np.errstate(over="ignore"):
        key = _mix(np.asarray([tensor + 1], dtype=np.uint64) * _G)
        return _mix(key + np.arange(1, count + 1, dtype=np.uint64) * _G)


def values(tensor, shape, scale=1.0, shift=0.0):
    """A float64 array of `shape` filled from the formula."""
    count = int(np.prod(shape, dtype=np.int64))
    unit = (bits(tensor, count) >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0
    return (shift + scale * unit).reshape(shape)


def samples(place, numel):
    """Which elements of state_dict entry number `place` the parity files store."""
    return (bits(SAMPLES + place, SAMPLE_COUNT) % np.uint64(numel)).astype(np.int64)


def resnet_entry(place, name, shape):
    """How one state_dict entry of a ResNet starts, as float64 (int64 for the counter)."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    if name.endswith("running_mean"):
        return np.zeros(shape)
    if name.endswith("running_var"):
        return np.ones(shape)
    if name == "fc.weight" or name == "fc.bias":
        features = 512 if name == "fc.bias" else shape[1]
        return values(place, shape, scale=1.0 / math.sqrt(features))
    if len(shape) == 4:
        fan_out = shape[0] * shape[2] * shape[3]
        return values(place, shape, scale=math.sqrt(6.0 / fan_out))
    if name.endswith("weight"):
        return values(place, shape, scale=0.1, shift=1.0)
    return values(place, shape, scale=0.1)
