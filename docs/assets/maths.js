// Typesets what the arithmatex extension marked, with the KaTeX that lies beside this file.
document.addEventListener("DOMContentLoaded", () => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const text = element.textContent.trim();
    const source = text.replace(/^\\[[(]/, "").replace(/\\[\])]$/, "");
    katex.render(source, element, { displayMode: text.startsWith("\\["), throwOnError: false });
  }
});
