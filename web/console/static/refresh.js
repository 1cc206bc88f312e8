"use strict";

// Renews the parts of the page that change: it fetches the same page and takes the parts
// that differ. It waits while the page is hidden, while somebody is at work in a part, and
// after Pause.
(() => {
  const every = Number(document.body.dataset.refresh) * 1000;
  if (!every) return;
  const note = document.getElementById("refreshed");
  const pause = document.getElementById("pause");
  let paused = false;
  let since = new Date();

  // A table that can be scrolled has the focus once it is clicked, which is no work.
  const inUse = (part) => {
    const active = document.activeElement;
    const selection = document.getSelection();
    return (part.contains(active) && !active.classList.contains("scroll")) ||
      (selection && !selection.isCollapsed && part.contains(selection.anchorNode));
  };

  const typing = () => /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName ?? "");

  // What the server sent for a part last, as the part itself changes when it is used.
  const sent = new Map();

  const replace = (part, next) => {
    if (!next || inUse(part) || sent.get(part.id) === next.innerHTML) return;
    sent.set(part.id, next.innerHTML);
    const tables = () => [...part.querySelectorAll(".scroll")];
    const details = () => [...part.querySelectorAll("details")];
    const before = tables();
    const scrolled = before.map((e) => e.scrollLeft);
    const focused = before.indexOf(document.activeElement);
    const open = details().map((e) => e.open);
    part.replaceChildren(...next.childNodes);
    details().forEach((e, i) => { e.open = open[i] ?? e.open; });
    tables().forEach((e, i) => {
      e.scrollLeft = scrolled[i] ?? 0;
      if (i === focused) e.focus({ preventScroll: true });
    });
  };

  const say = (text) => {
    if (note.textContent !== text) note.textContent = text;
  };

  const refresh = async () => {
    const response = await fetch(location.origin + location.pathname + location.search, {
      headers: { Accept: "text/html" },
      cache: "no-store",
      signal: AbortSignal.timeout(20000),
    });
    if (!response.ok) throw new Error(response.status);
    const next = new DOMParser().parseFromString(await response.text(), "text/html");
    if (paused) return;
    document.querySelectorAll("[data-part]").forEach((part) => replace(part, next.getElementById(part.id)));
    since = new Date();
    say("");
  };

  const loop = async () => {
    if (!paused && !document.hidden && !typing()) {
      try {
        await refresh();
      } catch {
        say("Not renewed since " + since.toLocaleTimeString());
      }
    }
    setTimeout(loop, every);
  };

  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Resume" : "Pause";
    say(paused ? "Paused" : "");
  });
  document.getElementById("refresh").hidden = false;
  setTimeout(loop, every);
})();
