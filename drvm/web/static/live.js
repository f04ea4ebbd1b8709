// Keeps what is marked data-live as the server would show it now. Everything works without this.
"use strict";
(() => {
  const POLL_MS = 30000;
  const CALM_MS = 1500;
  const state = document.getElementById("link-state");
  const running = document.querySelector("[data-live=running]");
  const vm = document.body.dataset.vm || "";
  let stream = null;
  let poll = 0;
  let fetching = false;
  let wanted = false;
  let seen = "";

  function show(words) {
    if (state.textContent !== words) state.textContent = words;
  }

  function isUsed(element) {
    const focus = document.activeElement;
    return element.querySelector("details[open]") !== null || (focus !== element && element.contains(focus));
  }

  function swap(fresh) {
    for (const old of document.querySelectorAll("[data-live]")) {
      const name = old.dataset.live;
      const next = fresh.querySelector(`[data-live="${CSS.escape(name)}"]`);
      if (next === null || isUsed(old) || old.isEqualNode(next)) continue;
      old.replaceChildren(...next.childNodes);
    }
    offerCopies();
    if (fresh.title) document.title = fresh.title;
  }

  async function renew() {
    if (fetching) { wanted = true; return; }
    fetching = true;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" } });
      if (answer.redirected) { location.reload(); return; }
      if (answer.ok) swap(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch {
      show("not connected");
    }
    setTimeout(() => { fetching = false; if (wanted) { wanted = false; renew(); } }, CALM_MS);
  }

  function close() {
    if (stream !== null) stream.close();
    stream = null;
    clearInterval(poll);
    poll = 0;
  }

  function open() {
    close();
    stream = new EventSource(vm ? `/events?vm=${encodeURIComponent(vm)}` : "/events");
    stream.addEventListener("open", () => show("live"));
    stream.addEventListener("running", (event) => {
      if (isUsed(running)) return;
      const fresh = new DOMParser().parseFromString(event.data, "text/html");
      running.replaceChildren(...fresh.body.childNodes);
    });
    stream.addEventListener("page", (event) => {
      if (seen !== "" && seen !== event.data) renew();
      seen = event.data;
    });
    stream.addEventListener("error", () => {
      show("connecting again");
      if (stream === null || stream.readyState !== EventSource.CLOSED) return;
      close(); // refused: logged out, or too many pages are open
      show("renewed every half minute");
      poll = setInterval(renew, POLL_MS);
      renew();
    });
  }

  function offerCopies() {
    if (!navigator.clipboard) return;
    for (const button of document.querySelectorAll("button[data-copy][hidden]")) button.hidden = false;
  }

  // Pages say UTC, as logs and commands do; who is woken at night thinks in a zone of their own.
  function tellZone() {
    const minutes = -new Date().getTimezoneOffset();
    if (minutes === 0) return;
    const apart = Math.abs(minutes);
    const hours = `${Math.floor(apart / 60)} h${apart % 60 ? ` ${apart % 60} min` : ""}`;
    const words = ` (your time zone is ${hours} ${minutes > 0 ? "ahead of" : "behind"} UTC)`;
    for (const place of document.querySelectorAll("[data-zone]")) place.textContent = words;
  }

  document.addEventListener("mouseover", (event) => {
    const time = event.target instanceof Element ? event.target.closest("time[datetime]") : null;
    if (time === null) return;
    const shown = { dateStyle: "medium", timeStyle: "short" };
    time.title = `${new Date(time.dateTime).toLocaleString(undefined, shown)} in your time zone`;
  });

  document.addEventListener("click", async (event) => {
    const button = event.target instanceof Element ? event.target.closest("button[data-copy]") : null;
    if (button === null) return;
    const text = document.getElementById(button.dataset.copy).textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });

  document.addEventListener("submit", (event) => {
    const button = event.target.querySelector("button");
    if (button !== null) setTimeout(() => { button.disabled = true; }, 0);
  });

  // A browser opens few connections to a server: pages that nobody sees need none.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) close();
    else { open(); renew(); }
  });

  window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

  // What was asked for has been said; the page as it is renewed need not say it again.
  if (location.search.startsWith("?began=")) history.replaceState(null, "", location.pathname);

  offerCopies();
  tellZone();
  if (running !== null && !document.hidden) open();
})();
