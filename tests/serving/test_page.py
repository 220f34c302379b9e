"""The page of `trainer serve`, in a real browser, before a real server with really trained small models."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image as PILImage
from torch import nn

from serving.scorer import Scorer
from serving.service.keys import Keys
from serving.service.options import Options
from serving.service.page import LOWEST_THRESHOLD
from serving.service.server import create_app
from tests.browser import OpenPage, Visit
from tests.conformance.conftest import Shapes, make_case
from trainer.drawing.style import class_color
from trainer.models import create
from trainer.models.training_items import Draw
from trainer.tasks import Task

LABELS = ("가위", "مقص, and a longer name than fits", "कैंची")
SCENE = 1  # of Shapes: two objects of two classes


def trained(task: Task, model: str, steps: int, objects: int = 0, **settings: Any) -> Scorer:
    """Train a small network on the four images of Shapes, with LABELS for classes.

    Args:
        steps: at least; CPUs round differently, so training continues until `objects` are found.
        objects: number of objects that it must find in the image SCENE.
    """
    case = make_case(task, model, **settings)
    with torch.random.fork_rng(devices=[]):
        network = case.build()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # so few steps would not reach the statistics otherwise
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.0)
        dataset = case.family.training_dataset(case.examples, case.settings, seed=0)
        items = [dataset.item(Draw(0, index)) for index in range(len(case.examples))]
        scorer = Scorer(create(case.family.spec.model_copy(update={"classes": LABELS})), network)
        for step in range(1, 6 * steps):
            network.train()
            case.step(network, optimizer, items)
            if step % steps:
                continue
            network.eval()
            (answer,) = scorer.score_images([case.examples[SCENE].image], scorer.spec.parameters)
            if len(answer.get("boxes", ())) >= objects:
                break
    network.requires_grad_(False)
    return scorer


@contextmanager
def serving(scorer: Scorer, **options: Any) -> Iterator[tuple[str, Callable[[], None]]]:
    """The server's URL, and what stops it."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(scorer, **options), ws="none", log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join()
        listener.close()

    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/", stop
    finally:
        stop()


@pytest.fixture(scope="module")
def segmenter() -> Scorer:
    return trained(Task.SEGMENTATION, "yolo11n-seg", 80, objects=2, image_size=96, box_score_threshold=0.6)


@pytest.fixture(scope="module")
def finder(segmenter: Scorer) -> Iterator[str]:
    with serving(segmenter) as (url, _):
        yield url


@pytest.fixture(scope="module")
def classifier() -> Iterator[str]:
    with serving(trained(Task.CLASSIFICATION, "timm/test_resnet", 25)) as (url, _):
        yield url


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene, in a file whose name a shell must not take apart."""
    path = tmp_path_factory.mktemp("photos") / "it's a $photo.png"
    PILImage.fromarray(Shapes(Task.DETECTION).images[SCENE]).save(path)
    return path


def upload(visit: Visit, *files: Path) -> None:
    visit.page.set_input_files("#file", files)
    visit.page.locator("#request-section").wait_for()


def posts(visit: Visit) -> int:
    return [method for method, _ in visit.requests].count("POST")


def color_at(visit: Visit, x: float, y: float) -> tuple[int, ...]:
    """The overlay's colour and opacity, red, green, blue, alpha, at a point in parts of the picture."""
    script = """([x, y]) => {
        const canvas = document.getElementById("overlay");
        return [...canvas.getContext("2d").getImageData(x * canvas.width, y * canvas.height, 1, 1).data];
    }"""
    return tuple(visit.page.evaluate(script, [x, y]))


def move_slider(visit: Visit, value: float) -> None:
    visit.page.locator("#threshold").fill(str(value))


def objects(visit: Visit) -> list[str]:
    return [row.inner_text() for row in visit.page.locator("#objects li:visible").all()]


def run_curl(visit: Visit, directory: Path, key: str = "") -> Any:
    visit.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visit.page.locator("#copy").click()
    visit.page.get_by_text("Copied.").wait_for()
    command = visit.page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=directory,
        env={**os.environ, "KEY": key},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_objects_are_drawn_where_they_are(open_page: OpenPage, finder: str, photo: Path) -> None:
    visit = open_page(finder)
    upload(visit, photo)
    # Of the scene: the class, and a point inside each object, in pixels of 160 × 120.
    for label, x, y in ((1, 95, 85), (0, 30, 36)):
        *color, alpha = color_at(visit, x / 160, y / 120)
        np.testing.assert_allclose(color, class_color(label), atol=3)
        assert 60 < alpha < 130, "the picture shows through"
    assert color_at(visit, 0.9, 0.1)[3] == 0
    assert len(objects(visit)) == 2
    assert visit.page.locator("#status").inner_text().startswith("2 objects at ")
    # the page itself, the one request, and nothing else
    assert [method for method, _ in visit.requests] == ["GET", "POST"]


def test_the_threshold_acts_at_once_and_without_a_request(
    open_page: OpenPage, finder: str, photo: Path
) -> None:
    visit = open_page(finder)
    upload(visit, photo)
    before = objects(visit)
    move_slider(visit, 1)
    assert objects(visit) == []
    assert color_at(visit, 95 / 160, 85 / 120)[3] == 0
    move_slider(visit, LOWEST_THRESHOLD)
    assert len(objects(visit)) >= len(before)
    assert color_at(visit, 95 / 160, 85 / 120)[3] > 0
    visit.page.locator("#threshold-reset").click()
    assert objects(visit) == before
    assert posts(visit) == 1


def test_classes_are_switched_off_and_on(open_page: OpenPage, finder: str, photo: Path) -> None:
    visit = open_page(finder)
    upload(visit, photo)
    row = visit.page.locator("#classes label", has_text=LABELS[0])
    row.click()
    assert color_at(visit, 30 / 160, 36 / 120)[3] == 0
    assert color_at(visit, 95 / 160, 85 / 120)[3] > 0
    assert all(LABELS[0] not in text for text in objects(visit))
    row.click()
    assert color_at(visit, 30 / 160, 36 / 120)[3] > 0
    visit.page.locator("#no-classes").click()
    assert objects(visit) == []


def test_the_curl_command_gives_what_is_shown(open_page: OpenPage, finder: str, photo: Path) -> None:
    visit = open_page(finder)
    upload(visit, photo)
    move_slider(visit, 0.4)
    (answer,) = run_curl(visit, photo.parent)
    assert [f"{found['label']}\n{found['score']:.2f}" for found in answer["boxes"]] == objects(visit)
    visit.page.locator("#answer-section summary").click()
    visit.page.locator("#json:not(:empty)").wait_for()
    assert json.loads(visit.page.locator("#json").inner_text()) == [answer]


def test_a_classifiers_probabilities_are_bars(open_page: OpenPage, classifier: str, photo: Path) -> None:
    visit = open_page(classifier)
    upload(visit, photo)
    rows = [row.inner_text().split("\n") for row in visit.page.locator("#probabilities li").all()]
    ((answer,),) = [run_curl(visit, photo.parent)]
    expected = sorted(zip(answer["probs"], answer["labels"], strict=True), reverse=True)
    assert rows == [[label, f"{prob:.3f}"] for prob, label in expected]
    assert visit.page.locator("#status").inner_text() == f"{expected[0][1]} {expected[0][0]:.3f}"
    widths = [bar.bounding_box()["width"] for bar in visit.page.locator(".bar").all()]  # type: ignore[index]
    filled = [bar.bounding_box()["width"] for bar in visit.page.locator(".bar span").all()]  # type: ignore[index]
    np.testing.assert_allclose(np.divide(filled, widths), [prob for prob, _ in expected], atol=0.01)


def test_a_classifiers_answer_is_explained(open_page: OpenPage, classifier: str, photo: Path) -> None:
    visit = open_page(classifier)
    upload(visit, photo)
    visit.page.locator("#method").select_option("guided_backprop")
    visit.page.get_by_role("button", name="Explain").click()
    picture = visit.page.locator("#maps img")
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 800
    best = visit.page.locator("#probabilities li").first.inner_text().split("\n")
    assert visit.page.locator("#maps figcaption").inner_text().split() == " ".join(best).split()
    (answer,) = run_curl(visit, photo.parent)
    assert picture.get_attribute("src") == "data:image/png;base64," + answer["visualizations"]


def test_busy_service_is_retried(open_page: OpenPage, finder: str, photo: Path) -> None:
    visit = open_page(finder)
    busy = json.dumps({"error": {"code": "busy", "message": "too many requests", "row": None}})
    visit.page.route(
        "**/score",
        lambda route: route.fulfill(status=429, headers={"Retry-After": "1"}, body=busy),
        times=1,
    )
    visit.page.set_input_files("#file", photo)
    visit.page.get_by_text("Retrying in 1 s").wait_for()
    visit.page.locator("#request-section").wait_for()
    assert len(objects(visit)) == 2
    assert posts(visit) == 2
    assert "429" in visit.errors.pop()


def test_timeout_is_shown(open_page: OpenPage, segmenter: Scorer, photo: Path) -> None:
    with serving(segmenter, options=Options(timeout_s=1e-4)) as (url, _):
        visit = open_page(url)
        visit.page.set_input_files("#file", photo)
        alert = visit.page.get_by_role("alert")
        alert.wait_for()
        assert "It took too long" in alert.inner_text()
        assert visit.page.get_by_role("button", name="Try again").is_visible()
    assert "504" in visit.errors.pop()


def test_service_with_keys_asks_for_one(open_page: OpenPage, segmenter: Scorer, photo: Path) -> None:
    with serving(segmenter, keys=Keys(("right", "second"))) as (url, _):
        visit = open_page(url)
        visit.page.set_input_files("#file", photo)
        field = visit.page.get_by_label("API key")
        for key in ("wrong", "right"):
            field.wait_for()
            assert visit.page.evaluate("document.activeElement.id") == "key"
            field.fill(key)
            with visit.page.expect_response("**/score"):
                visit.page.keyboard.press("Enter")
        visit.page.locator("#request-section").wait_for()
        assert not field.is_visible()
        assert "right" not in visit.page.locator("#curl").inner_text()
        (answer,) = run_curl(visit, photo.parent, key="second")
        assert len(answer["boxes"]) == len(objects(visit)) == 2
    assert len(visit.errors) == 2
    assert all("401" in error for error in visit.errors)
    visit.errors.clear()


def test_text_file_is_rejected_and_the_next_image_scored(
    open_page: OpenPage, finder: str, photo: Path, tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    visit = open_page(finder)
    visit.page.set_input_files("#file", text)
    alert = visit.page.get_by_role("alert")
    alert.wait_for()
    assert "cannot be scored" in alert.inner_text()
    assert "Not an image in a supported format" in alert.inner_text()
    assert not visit.page.locator("#picture").is_visible()
    assert visit.page.locator("#drop").is_visible()
    assert len(visit.errors) == 1
    assert "422" in visit.errors.pop()
    upload(visit, photo)
    assert not alert.is_visible()


def test_unreachable_service_is_shown_and_can_be_retried(
    open_page: OpenPage, segmenter: Scorer, photo: Path
) -> None:
    with serving(segmenter) as (url, stop):
        visit = open_page(url)
        stop()
        visit.page.set_input_files("#file", photo)
        alert = visit.page.get_by_role("alert")
        alert.wait_for()
        assert "does not answer" in alert.inner_text()
        with visit.page.expect_request("**/score"):
            visit.page.get_by_role("button", name="Try again").click()
        alert.wait_for()
    assert all("ERR_CONNECTION_REFUSED" in error for error in visit.errors)
    visit.errors.clear()


def test_the_keyboard_alone_is_enough(open_page: OpenPage, finder: str, photo: Path) -> None:
    visit = open_page(finder)
    press = visit.page.keyboard.press

    def focused() -> str:
        return str(visit.page.evaluate("document.activeElement.id"))

    visit.page.on("filechooser", lambda chooser: chooser.set_files(photo))
    press("Tab")
    assert focused() == "drop"
    press("Enter")
    visit.page.locator("#request-section").wait_for()
    assert focused() == "another"
    with visit.page.expect_response("**/score"):
        press("Space")
    visit.page.locator("#request-section").wait_for()
    assert focused() == "another"
    press("Tab")
    assert focused() == "threshold"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert visit.page.evaluate(outline) == "solid"
    press("End")
    assert objects(visit) == []
    press("Home")
    assert len(objects(visit)) >= 2
    seen = []
    for _ in range(12):
        press("Tab")
        seen.append(focused())
        if seen[-1] == "objects":
            press("ArrowDown")
            chosen = visit.page.locator("#objects [aria-selected=true]")
            assert chosen.inner_text() == objects(visit)[0]
            press("Escape")
            assert chosen.count() == 0
    expected = ["threshold-reset", "all-classes", "no-classes", "objects", "curl", "copy"]
    assert [each for each in seen if each in expected] == expected


def hand_over(visit: Visit, image: Path, how: str) -> None:
    """Drop or paste a file, as the browser tells a page of it."""
    script = """([how, content]) => {
        const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], "image.png", { type: "image/png" }));
        const event = how === "drop"
            ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
        document.body.dispatchEvent(event);
    }"""
    content = base64.b64encode(image.read_bytes()).decode()
    with visit.page.expect_response("**/score"):
        visit.page.evaluate(script, [how, content])
    visit.page.locator("#request-section").wait_for()


def test_an_image_is_dropped_or_pasted(open_page: OpenPage, finder: str, photo: Path, tmp_path: Path) -> None:
    visit = open_page(finder)
    save = visit.page.get_by_role("link", name="Save the pasted image")
    hand_over(visit, photo, "drop")
    assert len(objects(visit)) == 2
    assert not save.is_visible()
    hand_over(visit, photo, "paste")
    assert len(objects(visit)) == 2
    # it is no file yet, which the curl command needs
    with visit.page.expect_download() as download:
        save.click()
    download.value.save_as(tmp_path / download.value.suggested_filename)
    (answer,) = run_curl(visit, tmp_path)
    assert len(answer["boxes"]) == 2


def test_images_are_shown_upright(open_page: OpenPage, finder: str, tmp_path: Path) -> None:
    turned = PILImage.fromarray(Shapes(Task.DETECTION).images[SCENE]).transpose(PILImage.Transpose.ROTATE_90)
    exif = PILImage.Exif()
    exif[0x0112] = 6  # turn by a quarter, clockwise, to see it upright
    turned.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    visit = open_page(finder)
    upload(visit, tmp_path / "turned.jpg")
    assert "160 × 120" in visit.page.locator("#file-facts").inner_text()
    assert color_at(visit, 95 / 160, 85 / 120)[3] > 0
    picture, overlay = (visit.page.locator(name).bounding_box() for name in ("#image", "#overlay"))
    assert picture == overlay
    visit.page.evaluate("document.getElementById('overlay').hidden = true")
    shown = PILImage.open(io.BytesIO(visit.page.locator("#image").screenshot())).convert("RGB")
    for label, x, y in ((1, 95, 85), (0, 30, 36)):
        color = shown.getpixel((round(x / 160 * shown.width), round(y / 120 * shown.height)))
        np.testing.assert_allclose(color, Shapes.COLOURS[label], atol=20)


def test_image_that_browsers_cannot_show_is_scored(
    open_page: OpenPage, finder: str, photo: Path, tmp_path: Path
) -> None:
    PILImage.open(photo).save(tmp_path / "photo.tif")
    visit = open_page(finder)
    upload(visit, tmp_path / "photo.tif")
    visit.page.get_by_text("this browser cannot show").wait_for()
    assert not visit.page.locator("#picture").is_visible()
    assert len(objects(visit)) == 2


@pytest.mark.parametrize(
    "options",
    [
        {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True},
        {"color_scheme": "dark"},
    ],
    ids=["phone", "dark"],
)
def test_on_a_phone_and_in_the_dark(
    open_page: OpenPage, finder: str, photo: Path, options: dict[str, Any]
) -> None:
    visit = open_page(finder, **options)
    upload(visit, photo)
    assert visit.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    content = visit.page.screenshot()
    shot = np.asarray(PILImage.open(io.BytesIO(content)).convert("L"), dtype=float)
    corner = shot[2, 2]
    assert corner < 60 if "color_scheme" in options else corner > 200
    box = visit.page.locator("#threshold").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= visit.page.viewport_size["width"]  # type: ignore[index]


def test_a_thousand_classes_with_odd_names_stay_usable(open_page: OpenPage, tmp_path: Path) -> None:
    spec = make_case(Task.CLASSIFICATION, "timm/test_resnet").family.spec
    labels = (
        "</script><script>alert(1)</script>",
        "{{script}}",
        *(f"class {number}" for number in range(998)),
    )
    spec = spec.model_copy(update={"classes": labels})
    network = create(spec).build().eval()
    with serving(Scorer(create(spec), network)) as (url, _):
        visit = open_page(url)
        assert "1,000 classes" in visit.page.locator("header").inner_text()
        image = tmp_path / "grey.png"
        PILImage.new("RGB", (50, 40), (90, 90, 90)).save(image)
        upload(visit, image)
        rows = visit.page.locator("#probabilities li")
        assert rows.count() == 5
        visit.page.get_by_role("button", name="Show all 1,000 classes").click()
        assert rows.count() == 1000
        visit.page.get_by_role("searchbox").fill("<script>")
        assert rows.count() == 1
        assert labels[0] in rows.inner_text()


def test_page_loads_nothing_from_other_hosts(classifier: str) -> None:
    import httpx

    answer = httpx.get(classifier)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert not re.search(r"""(src|href)=["'](?!data:)""", answer.text)
    assert httpx.head(classifier).status_code == 200
