/* The browser's part of the page. The server owns the video's state and the chat; the question box,
   the player's position and uploads belong to the browser, so no update can overwrite what is typed. */
(() => {
  const UNSENT_SECONDS = 10; // after which a question that the server has not confirmed is offered again
  const EARLY_SECONDS = 0.25; // a stretch stops this close to its end: the browser tells the time 4 times a second

  const longlook = (window.longlook = { ask: () => {}, open: () => {} });
  const first = (selector) => document.querySelector(selector);
  const player = () => first("#player video");

  /* ---- the question box ---- */

  longlook.questionBox = (element, trigger) => {
    const form = element.querySelector("form");
    const box = element.querySelector("textarea");
    const unsent = element.querySelector(".look-unsent");
    let number = 0;
    const fit = () => {
      box.style.height = "auto";
      box.style.height = `${Math.min(box.scrollHeight, 120)}px`;
    };
    longlook.ask = (question) => {
      const sent = number++;
      trigger("submit", { question, number: sent });
      window.setTimeout(() => {
        if (first(`#chat [data-number="${sent}"]`) || longlook.firstNumber > sent) return;
        unsent.textContent = `Not sent, the server does not answer: ${question}`;
      }, 1000 * UNSENT_SECONDS);
    };
    longlook.nextNumber = () => number;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const question = box.value.trim();
      if (!question) return;
      box.value = "";
      unsent.textContent = "";
      fit();
      longlook.ask(question);
    });
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      form.requestSubmit();
    });
    box.addEventListener("input", fit);
    if (window.matchMedia("(min-width: 800px)").matches) box.focus({ preventScroll: true });
  };

  longlook.suggestions = (element) => {
    element.addEventListener("click", (event) => {
      const button = event.target.closest("[data-ask]");
      if (button) longlook.ask(button.textContent);
    });
  };

  longlook.chat = (element, trigger, watch) => {
    const scroller = first("#chat");
    let numTurns = 0;
    let newestState = "";
    scroller.setAttribute("role", "log");
    longlook.follow = () => trigger("tick"); // show what changes, see Handlers.follow
    watch("value", () => {
      const turns = element.querySelectorAll(".look-turn");
      const newest = turns[turns.length - 1];
      const isNear = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 160;
      if (isNear) scroller.scrollTop = scroller.scrollHeight;
      const state = newest ? `${newest.dataset.number} ${newest.className}` : "";
      if (turns.length > numTurns || (isNear && newest && state !== newestState)) {
        newest.scrollIntoView({ block: "nearest" });
      }
      numTurns = turns.length;
      newestState = state;
    });
    element.addEventListener("load", (event) => { // a picture makes the answer taller
      if (event.target.closest(".look-turn") === element.lastElementChild) scroller.scrollTop = scroller.scrollHeight;
    }, true);
    element.addEventListener("click", (event) => {
      const button = event.target.closest("[data-stop-answer]");
      if (button) trigger("stop", { number: Number(button.dataset.stopAnswer) });
    });
  };

  /* ---- videos: samples, uploads, drops ---- */

  longlook.sources = (element, trigger) => {
    const input = element.querySelector("input[type=file]");
    const line = element.querySelector(".look-upload span");
    const cancel = element.querySelector("[data-cancel]");
    let request = null;
    const say = (text, canCancel = false) => {
      line.textContent = text;
      cancel.hidden = !canCancel;
    };
    const opened = (kind, data) => {
      longlook.firstNumber = longlook.nextNumber();
      longlook.isOwn = kind === "upload";
      trigger(kind, data);
    };
    longlook.open = (file) => {
      request?.abort();
      const data = new FormData();
      data.append("files", file);
      request = new XMLHttpRequest();
      request.open("POST", new URL("gradio_api/upload", document.baseURI));
      request.upload.onprogress = (event) => {
        const percent = Math.floor((100 * event.loaded) / event.total);
        say(`Uploading ${file.name}: ${percent} % of ${(event.total / 1e6).toFixed(1)} MB`, true);
      };
      request.onload = () => {
        if (request.status === 200) {
          say("");
          opened("upload", { path: JSON.parse(request.responseText)[0], name: file.name });
        } else {
          say(request.status === 413
            ? `${file.name} is larger than this page takes. Give its path on the command line instead.`
            : `${file.name} could not be uploaded (error ${request.status}).`);
        }
      };
      request.onerror = () => say(`${file.name} could not be uploaded: the server does not answer.`);
      request.onabort = () => say("");
      say(`Uploading ${file.name}…`, true);
      request.send(data);
    };
    cancel.addEventListener("click", () => request?.abort());
    element.addEventListener("click", (event) => {
      const sample = event.target.closest("[data-sample]");
      if (sample) opened("click", { sample: Number(sample.dataset.sample) });
      if (event.target.closest("[data-open]")) input.click();
    });
    input.addEventListener("change", () => {
      if (input.files.length) longlook.open(input.files[0]);
      input.value = "";
    });
  };

  const carriesFile = (event) => Array.from(event.dataTransfer?.types ?? []).includes("Files");
  const showDropZone = (isOver) => document.body.classList.toggle("look-dropping", isOver);
  document.addEventListener("dragover", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    showDropZone(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) showDropZone(false);
  });
  document.addEventListener("drop", (event) => {
    if (!carriesFile(event)) return;
    event.preventDefault();
    showDropZone(false);
    if (event.dataTransfer.files.length) longlook.open(event.dataTransfer.files[0]);
  });
  window.addEventListener("beforeunload", (event) => {
    if (longlook.isOwn) event.preventDefault(); // leaving ends the session and forgets the upload
  });

  /* ---- the player ---- */

  let stopAt = Infinity;
  let isOurSeek = false;
  const show = (seconds, until) => {
    const video = player();
    if (!video) return;
    stopAt = until;
    isOurSeek = true;
    video.currentTime = seconds;
    if (until < Infinity) video.play().catch(() => {});
    video.scrollIntoView({ block: "nearest", behavior: "smooth" });
  };
  longlook.card = (element, trigger) => {
    element.addEventListener("click", (event) => {
      if (event.target.closest("[data-stop-watching]")) trigger("stop");
      const bar = event.target.closest(".look-bar");
      if (!bar) return;
      const box = bar.getBoundingClientRect();
      show((Number(bar.dataset.duration) * (event.clientX - box.left)) / box.width, Infinity);
    });
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-seek]");
    if (button) show(Number(button.dataset.seek), Number(button.dataset.until ?? Infinity));
  });
  document.addEventListener("timeupdate", (event) => {
    if (event.target !== player()) return;
    const { currentTime, duration } = event.target;
    document.documentElement.style.setProperty("--look-playhead", `${(100 * currentTime) / duration}%`);
    if (currentTime < stopAt - EARLY_SECONDS) return;
    event.target.pause();
    stopAt = Infinity;
  }, true);
  document.addEventListener("seeking", (event) => {
    if (event.target === player() && !isOurSeek) stopAt = Infinity; // the user goes elsewhere
    isOurSeek = false;
  }, true);
  const markPlayable = (isPlayable) => first("#player")?.classList.toggle("look-cannot-play", !isPlayable);
  document.addEventListener("error", (event) => event.target === player() && markPlayable(false), true);
  document.addEventListener("loadedmetadata", (event) => {
    if (event.target === player()) markPlayable(event.target.videoWidth > 0);
  }, true);
})();
