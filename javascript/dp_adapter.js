"use strict";

// What the panel needs in the browser: pasting and dropping pictures onto the photos, "send to DP-Adapter" buttons,
// and the brush for masks.
// Files go into the panel's own upload field, so that everything after it is the same as for a chosen file.
(function () {
    const PANELS = ["txt2img", "img2img"];
    const GALLERIES = ["txt2img", "img2img", "extras"];

    const root = () => (typeof gradioApp === "function" ? gradioApp() : document);
    const find = (selector) => root().querySelector(selector);
    const panel = (tab) => find(`#script_${tab}_dpadapter_enabled`);
    const drop = (tab) => find(`#script_${tab}_dpadapter_drop`);

    function give(tab, files) {
        const input = drop(tab)?.querySelector("input[type=file]");
        if (!input || !files.length) return false;
        const transfer = new DataTransfer();
        for (const file of files) transfer.items.add(file);
        input.files = transfer.files;
        input.dispatchEvent(new Event("change", { bubbles: true }));
        return true;
    }

    function open(tab) {
        const box = find(`#script_${tab}_dpadapter_enabled-checkbox input`);
        if (box && !box.checked) box.click();
    }

    // gradio 3 loses an upload when the page changes meanwhile. The panel empties the field when it has taken the files.
    async function taken(tab) {
        for (let tries = 0; tries < 100; tries += 1) {
            await new Promise((go_on) => setTimeout(go_on, 100));
            if (drop(tab)?.querySelector("input[type=file]")) return;
        }
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
        give(tab, files);
        await taken(tab);
        open(tab);
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
        const field = find(`#${box.dataset.target} textarea`);
        if (!field) return;
        field.value = box.querySelector("canvas").toDataURL("image/png");
        field.dispatchEvent(new Event("input", { bubbles: true }));
    }

    function clear(event) {
        const box = event.target.closest?.(".dp-adapter-canvas");
        if (!box || event.target.tagName !== "BUTTON") return;
        const canvas = box.querySelector("canvas");
        canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
        box.querySelector(".dp-adapter-before")?.remove();
        hand(box);
    }

    document.addEventListener("pointerdown", begin);
    document.addEventListener("pointermove", draw);
    document.addEventListener("pointerup", end);
    document.addEventListener("pointercancel", end);
    document.addEventListener("click", clear);
    window.addEventListener("paste", onPaste, true);
    window.addEventListener("drop", onDrop, true);
    if (typeof onUiLoaded === "function") onUiLoaded(addButtons);
    else if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", addButtons);
    else addButtons();
})();
