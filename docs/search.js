// An excerpt under every result of the search. Sphinx would fetch the pages, which a browser refuses for files on disk;
// here their texts come as a script, tools/docs.py writes it: PAGE_TEXTS = {page: [text, {anchor: place in it}]}.
(() => {
  const list = () => document.getElementById("search-results");
  const words = () => (new URLSearchParams(location.search).get("q") || "").toLowerCase().split(/[\s.]+/).filter(Boolean);

  function cut(text, from, wanted) {  // some words around the first place, from the anchor on, where one of the wanted words stands
    const low = text.toLowerCase(), found = wanted.map(w => low.indexOf(w, from)).filter(i => i >= 0);
    const at = found.length ? Math.min(...found) : from, start = Math.max(at - 90, from);
    const piece = text.slice(start, at + 160);
    return (start > from ? "… " : "") + piece.slice(start > from ? piece.indexOf(" ") + 1 : 0, piece.lastIndexOf(" ")) + " …";
  }

  function marked(text, wanted) {  // a paragraph with the wanted words in bold
    const p = document.createElement("p"), any = wanted.map(w => w.replace(/[^\w]/g, "\\$&")).join("|");
    p.className = "excerpt";
    for (const [i, part] of text.split(any ? new RegExp(`(${any})`, "i") : /$^/).entries())
      p.appendChild(i % 2 ? Object.assign(document.createElement("b"), {textContent: part}) : document.createTextNode(part));
    return p;
  }

  function excerpt(item) {
    const link = item.querySelector("a");
    if (!link || item.querySelector("p.excerpt")) return;
    const [page, anchor] = link.getAttribute("href").split("#"), known = PAGE_TEXTS[page.replace(/\.html$/, "")];
    if (known) item.appendChild(marked(cut(known[0], known[1][decodeURIComponent(anchor || "")] || 0, words()), words()));
  }

  document.addEventListener("DOMContentLoaded", () => {
    if (!list()) return;
    const texts = document.createElement("script");
    texts.src = "_static/texts.js";
    texts.onload = () => {
      const all = () => list().querySelectorAll("ul.search > li").forEach(excerpt);
      new MutationObserver(all).observe(list(), {childList: true, subtree: true});
      all();
    };
    document.head.appendChild(texts);
  });
})();
