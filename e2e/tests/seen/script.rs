//! The scripts that the tests run in a page.

pub const LISTEN_FOR_VIOLATIONS: &str = "
window.violations = [];
document.addEventListener('securitypolicyviolation', event => violations.push(event.effectiveDirective));
";

pub const OPEN_DETAILS: &str = "document.querySelectorAll('details').forEach(it => { it.open = true })";

pub const HEADING: &str = "document.querySelector('h1').textContent";

/// The id and the title of each task on the list.
pub const ROWS: &str = "
[...document.querySelectorAll('.task')]
  .map(row => ['.which', '.what'].map(part => row.querySelector(part).textContent))";

/// By how many pixels the page is wider than the window.
pub const OVERFLOW: &str = "document.documentElement.scrollWidth - document.documentElement.clientWidth";

/// The elements that no template of ours creates.
pub const MADE_BY_TASKS: &str = "
(() => {
  const foreign = 'SCRIPT STYLE LINK IMG IFRAME OBJECT EMBED FORM INPUT BUTTON'.split(' ');
  const handles = it => [...it.attributes].some(({name}) => name.startsWith('on') || name === 'style');
  const inText = it => it.parentElement.closest('bdi, .description');
  const made = [...document.querySelectorAll('body *')]
    .filter(it => foreign.includes(it.nodeName) || handles(it) || inText(it))
    .map(it => it.nodeName);
  return window.ran === undefined ? made : [...made, 'a script ran'];
})()";

/// The contrast of every visible text, and the lightness of the page.
pub const CONTRAST: &str = "
(() => {
  const colour = text => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a] };
  const over = (below, [r, g, b, a]) => [r, g, b].map((c, at) => c * a + below[at] * (1 - a));
  const linear = c => c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
  const lightness = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      layers.unshift(colour(getComputedStyle(at).backgroundColor));
    }
    return layers.reduce(over, [255, 255, 255]);
  };
  const texts = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !element.checkVisibility()) continue;
    const below = ground(element);
    const own = lightness(over(below, colour(getComputedStyle(element).color)));
    const [light, dark] = [own, lightness(below)].sort((a, b) => b - a);
    texts.push({text: walk.currentNode.data.slice(0, 40), ratio: (light + 0.05) / (dark + 0.05)});
  }
  return {ground: lightness(ground(document.body)), texts};
})()";

/// The focused element, and whether a user can see the focus.
pub const FOCUS: &str = "
(() => {
  const it = document.activeElement;
  const ring = style => style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2;
  const after = getComputedStyle(it, '::after');
  const box = it.getBoundingClientRect();
  return {
    text: it.textContent, path: it.pathname,
    ringed: ring(getComputedStyle(it)) || (after.content !== 'none' && ring(after)),
    inWindow: box.top >= 0 && box.left >= 0 && box.bottom <= innerHeight && box.right <= innerWidth,
  };
})()";

/// Removes every focus ring.
pub const NO_RINGS: &str = "
for (const rule of document.styleSheets[0].cssRules) {
  if (rule.selectorText?.includes(':focus-visible')) rule.style.outline = 'none';
}";

/// The findings of axe-core, once it is in the page. It may not fetch the stylesheet, because the policy forbids it.
pub const AXE: &str = "
axe.run(document, {preload: false}).then(({passes, violations}) => ({
  passes: passes.length,
  violations: violations.map(({id, nodes}) => ({id, at: nodes.map(it => [it.html, it.failureSummary])})),
}))";

/// Actions that the policy must block, each with the directive of its report.
pub const BREACHES: [(&str, &str); 6] = [
    (
        "script-src-elem",
        "const it = document.createElement('script');
         it.textContent = 'window.ran = 1';
         document.body.append(it);",
    ),
    ("script-src-attr", "document.body.setAttribute('onclick', 'window.ran = 1'); document.body.click();"),
    ("style-src-attr", "document.body.setAttribute('style', 'color: red');"),
    ("img-src", "const it = document.createElement('img'); it.src = 'ELSEWHERE'; document.body.append(it);"),
    ("connect-src", "fetch('/api/tasks').catch(() => 0);"),
    ("frame-src", "const it = document.createElement('iframe'); it.src = '/'; document.body.append(it);"),
];
