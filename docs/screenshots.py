"""Takes the README's pictures of a run: its report and TensorBoard's page of hyperparameters, in headless Chromium.

`python docs/screenshots.py runs/quickstart` writes report.png and tensorboard.png beside this file.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

HERE = Path(__file__).parent
WIDTH, REPORT_HEIGHT, TENSORBOARD_HEIGHT = 1280, 1500, 700
PATIENCE = 60.0
"""Seconds for a page to be drawn."""
TABLE = """
const texts = [];
const collect = (node) => {
  if (node.shadowRoot) collect(node.shadowRoot);
  for (const child of node.childNodes) child.nodeType === 3 ? texts.push(child.data) : collect(child);
};
collect(document.body);
return texts.join("\\n");
"""
"""All text of a page, that within web components too."""


def main(run: Path) -> None:
    """Takes both pictures."""
    subprocess.run(["rayft", "report", str(run)], check=True)
    with browser() as driver:
        take_report(driver, run / "report.html", HERE / "report.png")
    with browser() as driver, tensorboard(run) as address:
        take_hparams(driver, address, HERE / "tensorboard.png")


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """A window of Chromium."""
    program, service = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or service is None:
        sys.exit("needs chromium and chromedriver on the PATH (apt-get install chromium chromium-driver)")
    options = Options()
    options.binary_location = program
    for argument in ("--headless=new", "--hide-scrollbars", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    if os.geteuid() == 0:  # Chromium's sandbox refuses root
        options.add_argument("--no-sandbox")
    driver = webdriver.Chrome(options, Service(service))
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def tensorboard(run: Path) -> Iterator[str]:
    """TensorBoard on a run; gives its address."""
    command = ["rayft", "tensorboard", str(run), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        address = next(found for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
        yield address.group()
    finally:
        process.terminate()
        process.wait()


def take_report(driver: webdriver.Chrome, report: Path, to: Path) -> None:
    """A picture of the top of a report."""
    driver.set_window_size(WIDTH, REPORT_HEIGHT)
    driver.get(report.absolute().as_uri())
    WebDriverWait(driver, PATIENCE).until(lambda d: d.execute_script("return document.documentElement.dataset.drawn"))
    driver.save_screenshot(str(to))


def take_hparams(driver: webdriver.Chrome, address: str, to: Path) -> None:
    """A picture of the page of hyperparameters, once it lists trials with their values."""
    driver.set_window_size(WIDTH + 500, TENSORBOARD_HEIGHT)  # the metrics are its last columns
    driver.get(f"{address}#hparams")
    WebDriverWait(driver, PATIENCE).until(lambda d: "learning_rate" in d.execute_script(TABLE))
    WebDriverWait(driver, PATIENCE).until(lambda d: re.search(r"\d\.\d{4}e-\d|0\.\d{4}", d.execute_script(TABLE)))
    driver.save_screenshot(str(to))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
