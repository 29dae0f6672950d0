"""Cases of the loss functions.

Invariant: as in parity_layers.py; where every target is ignored the mean is NaN, and that is stored
as NaN.
"""

import torch
import torch.nn.functional as F

REDUCTIONS = ("none", "mean", "sum")


def class_losses(f):
    def case(
        name,
        x,
        target,
        weight=None,
        reduction="mean",
        ignore_index=-100,
        label_smoothing=0.0,
        op="cross_entropy",
    ):
        inputs = {"input": x, "target": torch.tensor(target)}
        if weight is not None:
            inputs["weight"] = weight
        attrs = {"reduction": reduction, "ignore_index": ignore_index}
        if op == "cross_entropy":
            attrs["label_smoothing"] = label_smoothing
            run = lambda input, target, weight=None: F.cross_entropy(input, target, weight, **attrs)
        else:
            run = lambda input, target, weight=None: F.nll_loss(input, target, weight, **attrs)
        f.add(name, op, run, inputs, attrs, constant=("weight",))

    classes = 4
    target = [1, 0, 3, 3, 2]
    some = [1, -100, 3, -100, 2]
    for op in ("cross_entropy", "nll_loss"):

        def logits(*shape, op=op):
            x = f.fill(*shape, scale=3.0)
            if op == "cross_entropy":
                return x
            return F.log_softmax(x, dim=1 if len(shape) > 1 else 0).float().double()

        weight = f.fill(classes, scale=0.5, shift=1.0)
        for reduction in REDUCTIONS:
            case(f"plain_{reduction}", logits(5, classes), target, reduction=reduction, op=op)
            case(f"weight_{reduction}", logits(5, classes), target, weight, reduction, op=op)
            case(f"ignore_some_{reduction}", logits(5, classes), some, None, reduction, op=op)
            case(
                f"ignore_some_weight_{reduction}",
                logits(5, classes),
                some,
                weight,
                reduction,
                op=op,
            )
            case(f"ignore_all_{reduction}", logits(3, classes), [-100] * 3, None, reduction, op=op)
            case(
                f"spatial_{reduction}",
                logits(2, classes, 3),
                [[1, 0, 3], [2, 2, 1]],
                None,
                reduction,
                op=op,
            )
        case("ignore_index_2", logits(5, classes), target, None, "mean", ignore_index=2, op=op)
        case(
            "weight_zero_for_a_class",
            logits(5, classes),
            target,
            torch.tensor([1.0, 0.0, 0.5, 2.0], dtype=torch.float64),
            op=op,
        )
        case(
            "spatial_2d_weight_ignore",
            logits(2, classes, 2, 2),
            [[[1, 0], [-100, 3]], [[2, -100], [0, 1]]],
            weight,
            op=op,
        )
        case("no_batch", logits(classes), 2, op=op)
        case("batch1", logits(1, classes), [3], op=op)
        case("one_class", logits(3, 1), [0, 0, 0], op=op)
    weight = f.fill(classes, scale=0.5, shift=1.0)
    for reduction in REDUCTIONS:
        case(
            f"smoothing_{reduction}",
            f.fill(5, classes, scale=3.0),
            target,
            None,
            reduction,
            label_smoothing=0.1,
        )
        case(
            f"smoothing_weight_ignore_{reduction}",
            f.fill(5, classes, scale=3.0),
            some,
            weight,
            reduction,
            label_smoothing=0.25,
        )
    case("smoothing_one", f.fill(5, classes, scale=3.0), target, label_smoothing=1.0)
    case("smoothing_ignore_all_mean", f.fill(3, classes), [-100] * 3, label_smoothing=0.1)
    case(
        "smoothing_spatial",
        f.fill(2, classes, 3),
        [[1, 0, 3], [2, -100, 1]],
        weight,
        label_smoothing=0.1,
    )
    case(
        "large_logits",
        torch.tensor([[1000.0, -1000.0, 0.0], [-1000.0, -1000.0, 999.0]], dtype=torch.float64),
        [1, 2],
    )


def probability_losses(f):
    def case(name, shape, weight=None, reduction="mean", label_smoothing=0.0):
        inputs = {
            "input": f.fill(*shape, scale=3.0),
            "target": F.softmax(f.fill(*shape, scale=2.0), dim=1).float().double(),
        }
        if weight is not None:
            inputs["weight"] = weight
        attrs = {"reduction": reduction, "label_smoothing": label_smoothing}
        f.add(
            name,
            "cross_entropy",
            lambda input, target, weight=None: F.cross_entropy(input, target, weight, **attrs),
            inputs,
            attrs,
            constant=("weight", "target"),
        )

    weight = f.fill(4, scale=0.5, shift=1.0)
    for reduction in REDUCTIONS:
        case(f"probabilities_{reduction}", (5, 4), None, reduction)
        case(f"probabilities_weight_smoothing_{reduction}", (5, 4), weight, reduction, 0.2)
        case(f"probabilities_spatial_{reduction}", (2, 4, 3), weight, reduction)


def regression_losses(f):
    for reduction in REDUCTIONS:
        f.add(
            reduction,
            "mse_loss",
            lambda input, target, r=reduction: F.mse_loss(input, target, reduction=r),
            {"input": f.fill(3, 4), "target": f.fill(3, 4)},
            {"reduction": reduction},
        )

    def bce(name, x, target, reduction="mean", weight=None, pos_weight=None):
        inputs = {"input": x, "target": target}
        if weight is not None:
            inputs["weight"] = weight
        if pos_weight is not None:
            inputs["pos_weight"] = pos_weight
        f.add(
            name,
            "binary_cross_entropy_with_logits",
            lambda input, target, weight=None, pos_weight=None: F.binary_cross_entropy_with_logits(
                input, target, weight, reduction=reduction, pos_weight=pos_weight
            ),
            inputs,
            {"reduction": reduction},
            constant=("target", "weight", "pos_weight"),
        )

    for reduction in REDUCTIONS:
        soft = f.fill(3, 4, scale=0.5, shift=0.5)
        bce(f"plain_{reduction}", f.fill(3, 4, scale=3.0), soft, reduction)
        bce(
            f"weight_pos_weight_{reduction}",
            f.fill(3, 4, scale=3.0),
            soft,
            reduction,
            f.fill(3, 4, shift=1.5),
            f.fill(4, shift=1.5),
        )
        bce(
            f"weight_broadcast_{reduction}",
            f.fill(3, 4, scale=3.0),
            soft,
            reduction,
            f.fill(4, shift=1.5),
        )
    extreme = torch.tensor([[1000.0, -1000.0, 1000.0, -1000.0, 0.0, -0.0]], dtype=torch.float64)
    hard = torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0, 0.0]], dtype=torch.float64)
    bce("extreme_logits", extreme, hard, "none")
    bce("extreme_logits_pos_weight", extreme, hard, "sum", pos_weight=f.fill(6, shift=2.0))
