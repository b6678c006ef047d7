"""Pages in headless Chromium: what a script of the test finds in a page when it has been loaded."""

import functools
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import unquote

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
EARS = """<script>
window.troubles = [];
addEventListener("error", (event) => troubles.push(String(event.message || event.target.src)), true);
addEventListener("unhandledrejection", (event) => troubles.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => troubles.push("blocked " + event.blockedURI));
for (const name of ["error", "warn"]) console[name] = (...words) => troubles.push(words.join(" "));
</script>
"""
TELL = """<script>
addEventListener("load", () => setTimeout(() => {  // what was blocked is told after a while
  const found = {};
  SCRIPT
  const fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
  found.fetched = fetched.filter((name) => !name.startsWith("data:"));
  found.troubles = troubles;
  parent.postMessage(encodeURIComponent(JSON.stringify(found)), "*");
}, 200));
</script></body>"""
HEAR = """<iframe src="page.html" style="width:WIDTHpx;height:800px;border:0"></iframe><script>
addEventListener("message", (event) =>
  document.body.insertAdjacentHTML("beforeend", '<pre id="found">' + event.data + "</pre>"));
</script>"""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--virtual-time-budget=10000", "--allow-file-access-from-files", "--window-size=1200,900",
)  # fmt: skip


@functools.cache
def chromium() -> str | None:
    """The program, or None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def look(page: str, script: str, *options: str, width: int = 1200) -> dict:
    """What ``script`` leaves in the object ``found``, run after the page's own; and ``found.troubles``."""
    end = TELL.replace("SCRIPT", script)
    page = page.replace("<head>", "<head>" + EARS, 1).replace("</body>", end, 1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(page, encoding="utf-8")
        frame = Path(folder) / "frame.html"  # a window has a least width, a frame has not
        command = [chromium() or "", *FLAGS, f"--user-data-dir={folder}/profile", *options]
        frame.write_text(HEAR.replace("WIDTH", str(width)))
        out = subprocess.run([*command, "--dump-dom", frame.as_uri()], capture_output=True, text=True, timeout=120)
    match = re.search(r'<pre id="found">(\S+?)</pre>', out.stdout)
    assert match, out.stderr[-2000:]
    return json.loads(unquote(match[1]))
