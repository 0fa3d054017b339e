"use strict";

// What the panel needs in the browser: pasting and dropping pictures onto the photos, clicks on thumbnails, "send to
// DP-Adapter" buttons, the boxes of regions, and the brush for masks.
// Files go into the panel's own upload field, so that everything after it is the same as for a chosen file.
(function () {
    const PANELS = ["txt2img", "img2img"];
    const GALLERIES = ["txt2img", "img2img", "extras"];

    const root = () => (typeof gradioApp === "function" ? gradioApp() : document);
    const find = (selector) => root().querySelector(selector);
    const panel = (tab) => find(`#script_${tab}_dpadapter_enabled`);
    const drop = (tab) => find(`#script_${tab}_dpadapter_drop`);

    function give(tab, files) {
        return put(drop(tab), files);
    }

    function put(zone, files) {
        const input = zone?.querySelector("input[type=file]");
        if (!input || !files.length) return false;
        const transfer = new DataTransfer();
        for (const file of files) transfer.items.add(file);
        input.files = transfer.files;
        input.dispatchEvent(new Event("change", { bubbles: true }));
        return true;
    }

    // gradio 3 drops the answer to an upload when anything on the page is updated meanwhile, and says "Uploading..." for
    // ever. Where the server has answered and that is still so, the files are given once more.
    const ZONE = ".dp-adapter-drop";
    const UPLOADING = "td.download:not(:has(a))";
    const tries = new WeakMap();
    let answered = 0;

    function onUpload(event) {
        const zone = event.target.closest?.(ZONE);
        const files = [...(event.target.files || event.dataTransfer?.files || [])];
        if (!zone || !files.length) return;
        const begun = performance.now();
        const timer = setInterval(() => {
            const late = answered > begun && performance.now() - answered > 1000;
            if (!zone.querySelector(UPLOADING)) tries.delete(zone);
            else if (!late) return;
            else if ((tries.get(zone) || 0) < 3) again(zone, files);
            clearInterval(timer);
        }, 250);
    }

    function again(zone, files) {
        tries.set(zone, (tries.get(zone) || 0) + 1);
        zone.querySelector("button")?.click();
        setTimeout(() => put(zone, files), 100);
    }

    function watchUploads() {
        new PerformanceObserver((seen) => {
            if (seen.getEntries().some((entry) => /\/upload(\?|$)/.test(entry.name))) answered = performance.now();
        }).observe({ type: "resource" });
        document.addEventListener("change", onUpload, true);
        document.addEventListener("drop", onUpload, true);
    }

    function open(tab) {
        const box = find(`#script_${tab}_dpadapter_enabled-checkbox input`);
        if (box && !box.checked) box.click();
    }

    const pictures = (files) => [...(files || [])].filter((file) => file.type.startsWith("image/"));

    async function fetched(address) {
        const blob = await (await fetch(address)).blob();
        const name = decodeURIComponent(address.split(/[?#]/)[0].split("/").pop() || "") || "picture.png";
        return blob.type.startsWith("image/") ? [new File([blob], address.startsWith("data:") ? "picture.png" : name, { type: blob.type })] : [];
    }

    // The host takes pasted pictures for its own fields, so ours has to be asked first.
    function onPaste(event) {
        const files = pictures(event.clipboardData?.files);
        const tab = files.length && PANELS.find((name) => panel(name)?.matches(":hover") || drop(name)?.matches(":hover"));
        if (tab && give(tab, files)) {
            event.preventDefault();
            event.stopImmediatePropagation();
        }
    }

    // A picture dragged from the page itself comes as an address in some browsers.
    async function onDrop(event) {
        const tab = PANELS.find((name) => drop(name)?.contains(event.target));
        const address = event.dataTransfer?.getData("text/uri-list");
        if (!tab || !address || event.dataTransfer.files.length) return;
        event.preventDefault();
        event.stopPropagation();
        const own = new URL(address, location.href);
        if (own.origin === location.origin || own.protocol === "data:") give(tab, await fetched(address));
    }

    async function send(image, tab) {
        if (!image?.src || !drop(tab)) return;
        const files = await fetched(image.src);
        const go = window[`switch_to_${tab}`];
        if (typeof go === "function") go();
        open(tab);
        give(tab, files);
        panel(tab)?.scrollIntoView({ block: "nearest" });
    }

    const shown = (gallery) =>
        find(`#${gallery} .thumbnail-item.selected img`) || find(`#${gallery} .preview img`) || find(`#${gallery} .thumbnail-item img`);

    function button(like, id, text, act) {
        if (!like || find(`#${id}`)) return;
        const made = document.createElement("button");
        made.id = id;
        made.className = like.className;
        made.textContent = text;
        made.title = "Use this picture as a photo in DP-Adapter";
        made.addEventListener("click", act);
        like.parentElement.appendChild(made);
    }

    function addButtons() {
        for (const gallery of GALLERIES) {
            const tab = PANELS.includes(gallery) ? gallery : PANELS[0];
            const like = [...root().querySelectorAll(`#image_buttons_${gallery} button`)].pop();
            button(like, `dp_adapter_send_${gallery}`, "👤", () => send(shown(`${gallery}_gallery`), tab));
        }
        const info = find("#tab_pnginfo #txt2img_tab") || find("#tab_pnginfo #img2img_tab");
        for (const tab of PANELS) {
            button(info, `dp_adapter_send_pnginfo_${tab}`, `Send to DP-Adapter (${tab})`, () => send(find("#pnginfo_image img"), tab));
        }
    }

    function onThumbnail(event) {
        const item = event.target.closest?.(".dp-adapter-photos .thumbnail-item, .dp-adapter-faces .thumbnail-item");
        const gallery = item?.closest(".dp-adapter-photos, .dp-adapter-faces");
        const number = item ? [...gallery.querySelectorAll(".thumbnail-item")].indexOf(item) : -1;
        if (number >= 0) write(`${gallery.id}_clicked`, `${number} ${Date.now()}`);
    }

    function write(id, text) {
        const field = find(`#${id} textarea`);
        if (!field) return;
        field.value = text;
        field.dispatchEvent(new Event("input", { bubbles: true }));
    }

    // What a button drew is drawn anew when something in it changed, as if it were pressed again; once for many changes.
    const DRAWN = { region_redraw: "region_picture", region_draw: "region_layout" };
    const waiting = {};

    function drawn(button) {
        const [kind, picture] = Object.entries(DRAWN).find(([end]) => button.endsWith(end));
        return find(`#${button.slice(0, -kind.length)}${picture}`)?.querySelector("img, style");
    }

    window.dpAdapterRedraw = (buttons) => {
        for (const button of buttons) {
            clearTimeout(waiting[button]);
            waiting[button] = setTimeout(() => drawn(button) && find(`#${button}`)?.click(), 400);
        }
        return [];
    };
    // A dropdown takes over what is typed when it is left; the panel tells what the mode does with it before that.
    // It is asked when typing pauses, as gradio 3 shows answers in the order in which they come.
    const EXPRESSION = "[id$=_dpadapter_expression]";
    const PAUSE_MS = 250;
    let typing = 0;

    function onTyped(event) {
        const field = event.target.closest?.(EXPRESSION);
        if (!field || !event.target.matches("input")) return;
        clearTimeout(typing);
        typing = setTimeout(() => write(`${field.id}_typed`, `${event.target.value}\n${Date.now()}`), PAUSE_MS);
    }

    function onTypedAndLeft(event) {
        if (event.target.closest?.(EXPRESSION)) clearTimeout(typing);
    }

    // Boxes over a picture. They come as HTML from the panel, and the panel decides what a drag means.
    let drag = null;

    function grab(event) {
        const layout = event.target.closest?.(".dp-adapter-layout");
        if (event.button !== 0 || !layout) return;
        event.preventDefault();
        layout.querySelectorAll(".dp-adapter-box:not([data-index])").forEach((left) => left.remove());
        const held = event.shiftKey ? null : event.target.closest(".dp-adapter-box");
        const start = spot(layout, event);
        const from = held ? JSON.parse(held.dataset.box) : [...start, ...start];
        const edges = held ? event.target.dataset.edge || "" : "se";
        drag = { layout, held, box: held || blank(layout), start, from, sides: from, edges };
    }

    function blank(layout) {
        const made = document.createElement("div");
        made.className = "dp-adapter-box dp-adapter-chosen";
        return layout.appendChild(made);
    }

    const within = (value, low, high) => Math.min(Math.max(value, low), high);

    function spot(layout, event) {
        const area = layout.getBoundingClientRect();
        return [within((event.clientX - area.left) / area.width, 0, 1), within((event.clientY - area.top) / area.height, 0, 1)];
    }

    function pull(event) {
        if (!drag) return;
        const [x0, y0, x1, y1] = drag.from;
        const to = spot(drag.layout, event);
        let dx = to[0] - drag.start[0];
        let dy = to[1] - drag.start[1];
        if (!drag.edges) {
            dx = within(dx, -x0, 1 - x1);
            dy = within(dy, -y0, 1 - y1);
        }
        const moves = (edge) => !drag.edges || drag.edges.includes(edge);
        drag.sides = [x0 + (moves("w") ? dx : 0), y0 + (moves("n") ? dy : 0), x1 + (moves("e") ? dx : 0), y1 + (moves("s") ? dy : 0)];
        const [left, right] = [drag.sides[0], drag.sides[2]].sort((a, b) => a - b);
        const [top, bottom] = [drag.sides[1], drag.sides[3]].sort((a, b) => a - b);
        const percent = (share) => `${100 * share}%`;
        Object.assign(drag.box.style, { left: percent(left), top: percent(top), width: percent(right - left), height: percent(bottom - top) });
    }

    function letGo() {
        if (!drag) return;
        const { layout, held, box, sides, from } = drag;
        drag = null;
        if (!held && sides === from) box.remove();
        const index = held ? Number(held.dataset.index) : -1;
        write(layout.dataset.target, JSON.stringify({ index, box: sides, at: Date.now() }));
    }

    // The mask brush. Its canvas comes as HTML from the panel, so the listeners are the document's.
    let stroke = null;

    function begin(event) {
        const canvas = event.target;
        if (event.button !== 0 || !canvas.matches?.(".dp-adapter-canvas canvas")) return;
        event.preventDefault();
        const box = canvas.closest(".dp-adapter-canvas");
        const pen = canvas.getContext("2d");
        const before = box.querySelector(".dp-adapter-before");
        if (before) {
            pen.drawImage(before, 0, 0, canvas.width, canvas.height);
            before.remove();
        }
        pen.lineCap = pen.lineJoin = "round";
        pen.strokeStyle = "#fff";
        pen.lineWidth = Number(box.querySelector("input[type=range]").value);
        pen.globalCompositeOperation = box.querySelector("input[type=checkbox]").checked ? "destination-out" : "source-over";
        stroke = { box, canvas, pen, last: at(canvas, event) };
        draw(event);
    }

    function at(canvas, event) {
        const area = canvas.getBoundingClientRect();
        return [((event.clientX - area.left) * canvas.width) / area.width, ((event.clientY - area.top) * canvas.height) / area.height];
    }

    function draw(event) {
        if (!stroke) return;
        const to = at(stroke.canvas, event);
        stroke.pen.beginPath();
        stroke.pen.moveTo(...stroke.last);
        stroke.pen.lineTo(...to);
        stroke.pen.stroke();
        stroke.last = to;
    }

    function end() {
        if (!stroke) return;
        hand(stroke.box);
        stroke = null;
    }

    function hand(box) {
        write(box.dataset.target, box.querySelector("canvas").toDataURL("image/png"));
    }

    function clear(event) {
        const box = event.target.closest?.(".dp-adapter-canvas");
        if (!box || event.target.tagName !== "BUTTON") return;
        const canvas = box.querySelector("canvas");
        canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
        box.querySelector(".dp-adapter-before")?.remove();
        hand(box);
    }

    document.addEventListener("pointerdown", grab);
    document.addEventListener("pointermove", pull);
    document.addEventListener("pointerup", letGo);
    document.addEventListener("pointercancel", letGo);
    document.addEventListener("pointerdown", begin);
    document.addEventListener("pointermove", draw);
    document.addEventListener("pointerup", end);
    document.addEventListener("pointercancel", end);
    document.addEventListener("click", clear);
    document.addEventListener("click", onThumbnail, true);
    document.addEventListener("input", onTyped, true);
    document.addEventListener("focusout", onTypedAndLeft, true);
    watchUploads();
    window.addEventListener("paste", onPaste, true);
    window.addEventListener("drop", onDrop, true);
    if (typeof onUiLoaded === "function") onUiLoaded(addButtons);
    else if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", addButtons);
    else addButtons();
})();
