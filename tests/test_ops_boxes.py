"""Boxes: hand values, counted pixels, invariances, and gradients where formulas divide by zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnjax.ops import boxes

# Compiled as a whole: one by one, their operations take four times as long to compile.
IOU, GIOU, PAIRED_IOU, PAIRED_GIOU = map(jax.jit, (boxes.iou, boxes.giou, boxes.iou_paired, boxes.giou_paired))
PAIRED_DIOU, PAIRED_CIOU = map(jax.jit, (boxes.diou_paired, boxes.ciou_paired))
RNG = np.random.default_rng(0)


def some(n, high=40, whole=False):
    corners = np.sort(RNG.uniform(0, high, (n, 2, 2)), axis=1)
    return np.round(corners).astype(np.int32).reshape(n, 4) if whole else corners.reshape(n, 4).astype(np.float32)


def painted(box, side=48):
    pixels = np.zeros((side, side), bool)
    left, top, right, bottom = box
    pixels[top:bottom, left:right] = True
    return pixels


def test_iou_of_whole_pixels_is_counted_pixels():
    a, b = some(30, whole=True), some(20, whole=True)
    want = np.zeros((30, 20))
    for i, j in np.ndindex(30, 20):
        p, q = painted(a[i]), painted(b[j])
        want[i, j] = (p & q).sum() / max((p | q).sum(), 1)
    assert ((want > 0) & (want < 1)).sum() > 100
    np.testing.assert_allclose(IOU(a, b), want, atol=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "iou", "giou"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1, 1),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3, 1 / 3),
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7, 1 / 7 - 2 / 9),
        ((0, 0, 1, 1), (2, 0, 3, 1), 0, -1 / 3),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0, 0),
        ((0, 0, 4, 4), (1, 1, 2, 2), 1 / 16, 1 / 16),
        ((0, 0, 2, 2), (1, 1, 1, 1), 0, 0),  # no area
        ((0, 0, 2, 2), (3, 1, 1, 2), 0, 0),  # inside out
        ((1, 1, 1, 1), (1, 1, 1, 1), 0, 0),
        ((0, 0, 0, 0), (2, 2, 2, 2), 0, -1),
    ],
)
def test_hand_values(a, b, iou, giou):
    a, b = np.array([a], np.float32), np.array([b], np.float32)
    np.testing.assert_allclose(IOU(a, b), [[iou]], atol=1e-7)
    np.testing.assert_allclose(PAIRED_IOU(a, b), [iou], atol=1e-7)
    np.testing.assert_allclose(GIOU(a, b), [[giou]], atol=1e-7)
    np.testing.assert_allclose(PAIRED_GIOU(b, a), [giou], atol=1e-7)


@pytest.mark.parametrize("measure", [IOU, GIOU])
def test_invariances(measure):
    a, b = some(9), some(7)
    once = measure(a, b)
    assert once.shape == (9, 7)
    np.testing.assert_allclose(measure(b, a).T, once, atol=1e-6)
    np.testing.assert_allclose(measure(a + 10, b + 10), once, atol=1e-5)
    np.testing.assert_allclose(measure(a * 8, b * 8), once, atol=1e-6)
    np.testing.assert_array_equal(np.diag(measure(a, a)), np.ones(9))
    paired = jax.vmap(PAIRED_IOU if measure is IOU else PAIRED_GIOU)
    np.testing.assert_array_equal(jax.jit(paired)(a[:7], b), np.diag(once[:7]))
    assert measure(a[:0], b).shape == (0, 7)


def test_giou_is_at_most_iou():
    a, b = some(20), some(20)
    assert (np.asarray(GIOU(a, b)) <= np.asarray(IOU(a, b)) + 1e-6).all()
    assert np.min(GIOU(a, b)) < -0.2


@pytest.mark.parametrize("measure", [PAIRED_IOU, PAIRED_GIOU, PAIRED_DIOU])
def test_gradient_is_the_quotient_of_differences(measure):
    with jax.enable_x64(True):
        a, b = (some(40).astype(np.float64) for _ in range(2))
        got = jax.jit(jax.grad(lambda a: measure(a, b).sum()))(a)
        for i in range(4):
            step = 1e-6 * np.eye(4)[i]
            differences = np.subtract(measure(a + step, b), measure(a - step, b))
            np.testing.assert_allclose(got[:, i], differences / 2e-6, atol=1e-6)


CORNERS = [(1, 1, 1, 1), (0, 0, 0, 3), (0, 0, 2, 2), (3, 3, 1, 1), (5, 5, 6, 7), (0, 0, 0, 0), (1, 1, 1 + 1e-7, 2)]


@pytest.mark.parametrize("measure", [IOU, GIOU, boxes.diou, boxes.ciou])
def test_gradients_are_finite_whatever_the_boxes(measure):
    a = jnp.array([*CORNERS, (1e-9, 0, 2e-9, 1e-9), (0, 0, 1e-12, 1e-12)], jnp.float32)
    for argument in (0, 1):
        assert np.isfinite(jax.jit(jax.jacobian(measure, argument))(a, a)).all()


def test_gradient_of_an_empty_union_is_zero():
    a, b = jnp.array([1.0, 1, 1, 1]), jnp.array([2.0, 2, 2, 2])
    for of in jax.grad(PAIRED_IOU, (0, 1))(a, b):
        np.testing.assert_array_equal(of, np.zeros(4))
    for of in jax.grad(PAIRED_GIOU, (0, 1))(a, a):
        np.testing.assert_array_equal(of, np.zeros(4))
    np.testing.assert_array_equal(jax.grad(lambda a: boxes.visible(a, 9, 9))(a), np.zeros(4))


def test_apart_giou_draws_boxes_together_and_iou_does_not():
    a, b = jnp.array([0.0, 0, 2, 2]), jnp.array([5.0, 0, 7, 2])
    np.testing.assert_array_equal(jax.grad(PAIRED_IOU)(a, b), np.zeros(4))
    assert jax.grad(PAIRED_GIOU)(a, b)[2] > 0  # its right edge must move to the right


QUARTER_TURN = (2 / np.pi * (np.arctan(4) - np.arctan(1))) ** 2  # v of a box 4:1 and a square


@pytest.mark.parametrize(
    ("a", "b", "diou", "ciou"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1, 1),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3 - 1 / 13, 1 / 3 - 1 / 13),  # centers 1 apart, diagonal² 9 + 4
        ((0, 0, 1, 1), (2, 0, 3, 1), -4 / 10, -4 / 10),
        ((0, 0, 4, 4), (0, 0, 2, 2), 1 / 4 - 2 / 32, 1 / 4 - 2 / 32),
        ((0, 0, 4, 1), (0, 0, 1, 1), 1 / 4 - 2.25 / 17, 1 / 4 - 2.25 / 17 - QUARTER_TURN**2 / (0.75 + QUARTER_TURN)),
        ((0, 0, 4, 0), (8, 0, 8, 4), -(36 + 4) / (64 + 16), -(36 + 4) / (64 + 16) - 1 / 2),  # lines, v 1
        ((1, 1, 1, 1), (1, 1, 1, 1), 0, 0),
        ((0, 0, 0, 0), (2, 2, 2, 2), -1, -1),
    ],
)
def test_distance_and_complete_iou_by_hand(a, b, diou, ciou):
    a, b = np.array([a], np.float32), np.array([b], np.float32)
    np.testing.assert_allclose(boxes.diou(a, b), [[diou]], atol=1e-6)
    np.testing.assert_allclose(PAIRED_DIOU(b, a), [diou], atol=1e-6)
    np.testing.assert_allclose(boxes.ciou(a, b), [[ciou]], atol=1e-6)
    np.testing.assert_allclose(PAIRED_CIOU(b, a), [ciou], atol=1e-6)


def test_gradient_of_complete_iou_leaves_its_weight_alone():
    with jax.enable_x64(True):
        a, b = (some(40).astype(np.float64) for _ in range(2))
        got = jax.jit(jax.grad(lambda a: PAIRED_CIOU(a, b).sum()))(a)
        penalty = np.asarray(PAIRED_DIOU(a, b) - PAIRED_CIOU(a, b))

        def aspect(a):
            sides_a, sides_b = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
            turn = np.arctan(sides_a[:, 0] / sides_a[:, 1]) - np.arctan(sides_b[:, 0] / sides_b[:, 1])
            return (2 / np.pi * turn) ** 2

        alpha = penalty / aspect(a)
        for i in range(4):
            step = 1e-6 * np.eye(4)[i]
            up, down = (np.asarray(PAIRED_DIOU(x, b)) - alpha * aspect(x) for x in (a + step, a - step))
            np.testing.assert_allclose(got[:, i], (up - down) / 2e-6, atol=1e-6)


def test_a_box_inside_the_other_is_drawn_to_its_center_by_the_distance_alone():
    inner, outer = jnp.array([1.0, 1, 2, 2]), jnp.array([0.0, 0, 8, 8])
    move = [jax.grad(measure)(inner, outer).reshape(2, 2).sum(0) for measure in (PAIRED_GIOU, PAIRED_DIOU)]
    np.testing.assert_allclose(move[0], 0, atol=1e-7)
    assert (move[1] > 0.01).all()


def test_codes_of_ssd_by_hand():
    anchor, box = np.array([[10, 20, 30, 60]], np.float32), np.array([[15, 20, 25, 80]], np.float32)
    # Center (20, 40) of an anchor 20 × 40, center (20, 50) of a box 10 × 60.
    want = [[0, 10 / 40 / 0.1, np.log(1 / 2) / 0.2, np.log(3 / 2) / 0.2]]
    np.testing.assert_allclose(boxes.encode_ssd(box, anchor), want, atol=1e-6)
    np.testing.assert_allclose(boxes.encode_ssd(box, anchor, (1, 1)), want * np.array([0.1, 0.1, 0.2, 0.2]), atol=1e-6)
    np.testing.assert_allclose(boxes.decode_ssd(np.array(want), anchor), box, atol=1e-4)


def test_decoding_undoes_encoding_and_codes_are_finite_whatever_the_box():
    given, anchors = some(30)[None] + np.array([0, 0, 1, 1], np.float32), some(30) + np.array([0, 0, 1, 1], np.float32)
    codes = boxes.encode_ssd(given, anchors)
    assert codes.shape == (1, 30, 4)
    np.testing.assert_allclose(boxes.decode_ssd(codes, anchors), given, atol=1e-4)
    strange = jnp.array(CORNERS, jnp.float32)
    for function in (boxes.encode_ssd, boxes.decode_ssd):
        assert np.isfinite(function(strange, strange)).all()
        assert np.isfinite(jax.jacobian(function)(strange, strange)).all()


def test_a_decoded_box_is_at_most_so_much_larger_than_its_anchor():
    (box,) = boxes.decode_ssd(np.array([[0, 0, 1e4, 20.5]]), np.array([[0, 0, 16, 16]]))
    np.testing.assert_allclose(box[2:] - box[:2], [1000, 16 * np.exp(0.2 * 20.5)], rtol=1e-5)


def test_half_precision_and_integers_do_not_overflow():
    large = np.array([[0, 0, 2000, 2000]])
    for dtype in (np.float16, jnp.bfloat16, np.int16):
        assert boxes.area(large.astype(dtype))[0] == 4e6
        assert IOU(large.astype(dtype), large.astype(dtype))[0, 0] == 1


def test_conversions():
    box = np.array([[2.0, 3, 10, 7]], np.float32)
    np.testing.assert_array_equal(boxes.xyxy_to_cxcywh(box), [[6, 5, 8, 4]])
    np.testing.assert_array_equal(boxes.xyxy_to_xywh(box), [[2, 3, 8, 4]])
    many = some(6).reshape(2, 3, 4)
    np.testing.assert_allclose(boxes.cxcywh_to_xyxy(boxes.xyxy_to_cxcywh(many)), many, atol=1e-5)
    np.testing.assert_allclose(boxes.xywh_to_xyxy(boxes.xyxy_to_xywh(many)), many, atol=1e-5)


def test_clip_and_visible():
    given = np.array([[-5, 2, 5, 6], [1, 1, 2, 2], [18, -4, 30, 4], [40, 0, 50, 5], [3, 3, 3, 3]], np.float32)
    want = [[0, 2, 5, 6], [1, 1, 2, 2], [18, 0, 20, 4], [20, 0, 20, 5], [3, 3, 3, 3]]
    np.testing.assert_array_equal(boxes.clip(given, height=10, width=20), want)
    np.testing.assert_allclose(boxes.visible(given, 10, 20), [0.5, 1, 2 * 4 / (12 * 8), 0, 0])


def test_another_shape_is_refused():
    with pytest.raises(AssertionError, match=r"'4' on axis '-1' but got '5'"):
        boxes.area(np.zeros((3, 5)))
    with pytest.raises(AssertionError, match="rank is '0'"):
        boxes.area(np.float32(4))
    with pytest.raises(AssertionError, match="input 0 has rank 1"):
        boxes.iou(np.zeros(4), np.zeros((3, 4)))
