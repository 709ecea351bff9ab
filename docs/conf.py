"Sphinx's settings for the documentation site; tools/docs.py builds it. Nothing is loaded from other places: formulas become small pictures."
import base64, configparser, html, io, os
from pathlib import Path
from matplotlib import mathtext
from matplotlib.font_manager import FontProperties

settings = configparser.ConfigParser(delimiters=["="])
settings.read(os.environ["LATREF_SETTINGS"], encoding="utf-8")
about = settings["DEFAULT"]

project, author, release, copyright, language = about["title"], about["author"], about["version"], about["copyright"], "en"
extensions = ["myst_nb"]
root_doc = "docs/index"
html_theme = "sphinx_book_theme"
html_static_path, html_css_files, html_js_files = ["_static"], ["site.css"], ["search.js"]
html_title, html_copy_source, html_show_sourcelink = about["title"], False, False
html_theme_options = {"show_toc_level": 2, "use_download_button": False, "use_fullscreen_button": False, "home_page_in_toc": True, "show_navbar_depth": 1}
html_context = {"default_mode": "auto"}
html_show_search_summary = False                            # they are fetched page by page, which a browser refuses for files on disk; search.js gives excerpts
html_permalinks_icon = "#"
toc_object_entries = False
nb_execution_mode = "off"                                   # the chapters are shown with the outputs they are stored with
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header"]
html_math_renderer = "small_pictures"


def formula(tex):
    "One formula as an <img> that carries its picture with it; the TeX is its alternative text."
    plain = tex.strip().replace(r"\tfrac", r"\frac").replace(r"\text{", r"\mathrm{")
    drawn = io.BytesIO()
    try: depth = mathtext.math_to_image(f"${plain}$", drawn, prop=FontProperties(size=11), format="svg", color="#888888")
    except ValueError: return f"<code>{html.escape(tex)}</code>"
    picture = base64.b64encode(drawn.getvalue()).decode()
    return f'<img class="formula" alt="{html.escape(tex.strip())}" style="vertical-align:-{depth:.1f}pt" src="data:image/svg+xml;base64,{picture}">'

def inline(self, node):
    self.body.append(formula(node.astext()))
    raise __import__("docutils.nodes").nodes.SkipNode

def block(self, node):
    self.body.append(f'<p class="formula">{formula(node.astext())}</p>')
    raise __import__("docutils.nodes").nodes.SkipNode

def setup(app): app.add_html_math_renderer("small_pictures", (inline, None), (block, None))
