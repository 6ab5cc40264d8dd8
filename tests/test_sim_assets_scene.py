"""Objects, labs and their composition: every combination compiles, rests, and can be recoloured by name."""

import itertools

import mujoco
import numpy as np
import pytest

from armworld.sim_assets import catalog, textures
from armworld.sim_assets.catalog import LABS, OBJECTS, ROBOTS
from armworld.sim_assets.objects import lathe


@pytest.mark.parametrize(("lab", "gripper"), list(itertools.product(LABS, ROBOTS)))
def test_every_combination_compiles_and_rests(lab, gripper):
    model = catalog.scene_spec(lab, gripper, OBJECTS).compile()
    data = mujoco.MjData(model)
    for joint, angle in zip(catalog.ARM_JOINTS, catalog.HOME_QPOS, strict=True):
        data.joint(joint).qpos[0] = angle
        data.actuator(joint).ctrl[0] = angle
    mujoco.mj_step(model, data, 500)
    for name in OBJECTS:
        body = data.body(name)
        assert abs(body.xpos[2]) < 2e-3, f"{name} should stand on the table top, z = 0"
        assert body.xmat[8] > 0.9999
        assert np.abs(data.joint(name).qvel).max() < 1e-3
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    assert model.opt.cone == mujoco.mjtCone.mjCONE_ELLIPTIC


def test_unknown_names_list_the_valid_ones():
    with pytest.raises(ValueError, match="cup, box, bottle"):
        catalog.object_spec("mug")
    with pytest.raises(ValueError, match="lab1, lab2"):
        catalog.lab_spec("kitchen")
    with pytest.raises(ValueError, match="plain, bands"):
        catalog.object_spec("cup", surface="tartan")
    with pytest.raises(ValueError, match="positive"):
        catalog.object_spec("cup", size=0.0)


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("size", [0.8, 1.0, 1.15])
def test_objects_scale(name, size):
    one, scaled = (catalog.object_spec(name, s).compile() for s in (1.0, size))
    np.testing.assert_allclose(scaled.body(name).mass, one.body(name).mass * size**3, rtol=1e-9)
    np.testing.assert_allclose(scaled.body(name).inertia, one.body(name).inertia * size**5, rtol=1e-9)
    np.testing.assert_allclose(scaled.body(name).ipos, one.body(name).ipos * size, rtol=1e-9)
    width = np.ptp(_corners(scaled)[:, 1])
    assert width < 0.085, "fits between the 2F-85's fingers"


def _corners(model: mujoco.MjModel) -> np.ndarray:
    """Corners [N, 3] of every colliding box, object frame, m."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    signs = np.array(list(itertools.product((-1, 1), repeat=3)))
    solid = np.flatnonzero(model.geom_contype)
    return np.concatenate(
        [data.geom_xpos[g] + (signs * model.geom_size[g]) @ data.geom_xmat[g].reshape(3, 3).T for g in solid]
    )


@pytest.mark.parametrize("name", OBJECTS)
def test_origin_is_under_the_centre(name):
    corners = _corners(catalog.object_spec(name).compile())
    np.testing.assert_allclose(corners[:, :2].max(0) + corners[:, :2].min(0), 0, atol=1e-9)
    assert corners[:, 2].min() == pytest.approx(0, abs=1e-9)


def test_cup_is_hollow():
    spec = catalog.object_spec("cup")
    ball = spec.worldbody.add_body(pos=[0, 0, 0.12])
    ball.add_freejoint(name="ball")
    ball.add_geom(type=mujoco.mjtGeom.mjGEOM_SPHERE, size=[0.012], mass=0.01)
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1, 1, 0.1])
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 1000)
    assert 0.006 < data.joint("ball").qpos[2] < 0.03, "the ball lies on the cup's floor"


def test_object_colour_and_surface():
    model = catalog.object_spec("bottle", rgba=(0.1, 0.2, 0.3, 1)).compile()
    np.testing.assert_allclose(model.mat("bottle").rgba, [0.1, 0.2, 0.3, 1], rtol=1e-6)
    plain, checker = (catalog.object_spec("cup", surface=s).compile().tex_data for s in ("plain", "checker"))
    assert len(np.unique(plain)) == 1 and len(np.unique(checker)) == 2


@pytest.mark.parametrize("lab", LABS)
def test_lab_parts_have_names_for_randomisation(lab):
    model = catalog.lab_spec(lab).compile()
    materials = [model.mat(i).name for i in range(model.nmat)]
    lights = [model.light(i).name for i in range(model.nlight)]
    assert {"lab_table", "lab_floor", "lab_wall"} <= set(materials)
    assert set(lights) == {"lab_key", "lab_fill", "lab_back"}
    assert all(model.geom(i).name.startswith("lab_") for i in range(model.ngeom))
    table = model.geom("lab_table")
    assert table.pos[2] + table.size[2] == pytest.approx(0, abs=1e-12)
    assert {model.geom(g).name for g in np.flatnonzero(model.geom_contype)} == {"lab_table", "lab_floor"}


def test_labs_differ_and_repeat():
    first, again, other = (catalog.lab_spec(lab).compile() for lab in ("lab1", "lab1", "lab2"))
    np.testing.assert_array_equal(first.tex_data, again.tex_data)
    assert first.tex_data.shape != other.tex_data.shape or (first.tex_data != other.tex_data).mean() > 0.5


@pytest.mark.parametrize("name", OBJECTS)
def test_each_lab_has_objects_of_its_own_look_and_the_same_body(name):
    """lab2 is for testing what was learned in lab1: it must look different and behave alike."""
    first, second = (catalog.object_spec(name, lab=lab).compile() for lab in LABS)
    assert np.abs(first.mat(name).rgba - second.mat(name).rgba).max() > 0.2
    assert (first.tex_data != second.tex_data).mean() > 0.05
    for array in ("body_mass", "body_inertia", "body_ipos", "geom_size", "geom_pos", "geom_quat", "geom_friction"):
        np.testing.assert_array_equal(getattr(first, array), getattr(second, array))
    with pytest.raises(ValueError, match="lab1, lab2"):
        catalog.object_spec(name, lab="kitchen")


def test_lathe_is_closed_and_faces_outward():
    outline = np.array([[0.0, 0.0], [0.03, 0.0], [0.03, 0.1], [0.0, 0.1]])
    vertices, faces, coordinates = lathe(outline, segments=64)
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    volume = np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6  # divergence theorem: positive when outward
    assert volume == pytest.approx(np.pi * 0.03**2 * 0.1, rel=3e-3)
    assert len(coordinates) == len(vertices) and coordinates.min() >= 0 and coordinates.max() <= 1


def test_noise_tiles_and_textures_are_images():
    rng = np.random.default_rng(0)
    noise = textures.smooth_noise(rng, (64, 64), (4, 4))
    assert noise.min() >= 0 and noise.max() <= 1
    assert np.abs(noise[0] - noise[-1]).max() < 0.2 and np.abs(noise[:, 0] - noise[:, -1]).max() < 0.2
    for image in (
        textures.wood(rng), textures.plaster(rng), textures.bricks(rng, (1, 1, 1)), textures.poster(rng),
        textures.shelf_goods(rng, (1, 1, 1)), textures.perforated((1, 1, 1)), textures.checker((1, 1, 1), (0, 0, 0)),
        textures.stripes((1, 1, 1), (0, 0, 0)), textures.carpet(rng, (1, 1, 1)), textures.cardboard(rng),
    ):  # fmt: skip
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.std() > 1
