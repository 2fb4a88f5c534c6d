// The page without this script is whole. With it, it reads itself again every few
// seconds, while somebody looks, and copies what is to be copied.
"use strict";

(() => {
	const pause = 5000; // milliseconds
	let stopped = false;
	let timer = 0;

	// reading asks for the page's body as it is now.
	async function reading() {
		const address = new URL(location.href);
		address.hash = "";
		address.searchParams.set("part", "body");
		const answer = await fetch(address, { credentials: "same-origin", redirect: "error" });
		if (!answer.ok) {
			throw new Error(answer.status);
		}
		return new DOMParser().parseFromString(await answer.text(), "text/html");
	}

	// busy says that somebody writes or selects something in a part, or moves in it.
	function busy(part) {
		const selection = getSelection();
		if (selection && !selection.isCollapsed && part.contains(selection.anchorNode)) {
			return true;
		}
		if ([...part.querySelectorAll("input:not([type=hidden])")].some((i) => i.value !== i.defaultValue)) {
			return true;
		}
		const focus = document.activeElement;
		return part.contains(focus) && focus.matches("input, button");
	}

	// nameOf finds an element again in the part as it is now: by where it leads, or how
	// many of its kind stand before it.
	function nameOf(part, element) {
		const kind = element.tagName.toLowerCase();
		const href = element.getAttribute("href");
		if (href) {
			return (there) => [...there.querySelectorAll(kind)].find((e) => e.getAttribute("href") === href);
		}
		const place = [...part.querySelectorAll(kind)].indexOf(element);
		return (there) => there.querySelectorAll(kind)[place];
	}

	// renew puts what is new into a part. What is open stays open, where the keyboard is
	// stays, and so does how far tables were moved.
	function renew(part, now) {
		const open = [...part.querySelectorAll("details[data-keep][open]")].map((d) => d.dataset.keep);
		for (const details of now.querySelectorAll("details[data-keep]")) {
			details.open = open.includes(details.dataset.keep);
		}
		for (const shown of part.querySelectorAll(".copier")) {
			shown.remove();
		}
		if (part.innerHTML === now.innerHTML && part.className === now.className) {
			addCopiers(part);
			return;
		}
		const focus = document.activeElement;
		const again = part.contains(focus) && focus !== part ? nameOf(part, focus) : null;
		const moved = [...part.querySelectorAll(".scroll")].map((s) => s.scrollLeft);
		part.className = now.className;
		part.replaceChildren(...now.childNodes);
		part.querySelectorAll(".scroll").forEach((s, i) => { s.scrollLeft = moved[i] || 0; });
		addCopiers(part);
		if (again) {
			again(part)?.focus({ preventScroll: true });
		}
	}

	// look reads the page again, and puts what is new into it.
	async function look() {
		clearTimeout(timer);
		if (stopped) {
			return;
		}
		if (!document.hidden) {
			try {
				const now = await reading();
				for (const part of document.querySelectorAll("[data-live]")) {
					const other = now.getElementById(part.id);
					if (other && !busy(part)) {
						renew(part, document.importNode(other, true));
					}
				}
				tell("");
				say();
			} catch {
				tell("The gateway does not answer this page: what it shows is old.");
			}
			addPause();
		}
		timer = setTimeout(look, pause);
	}

	// say tells who does not see the page when its state has another word: aloud, and in the
	// tab's name.
	let word = document.querySelector(".word").textContent;
	function say() {
		const now = document.querySelector(".word").textContent;
		if (now !== word) {
			document.title = now + document.title.slice(word.length);
			word = now;
			document.getElementById("said").textContent = (document.getElementById("state-head") || { textContent: now }).textContent;
		}
	}

	// tell says that the page is old, or no more.
	function tell(text) {
		let notice = document.getElementById("unread");
		if (!text) {
			notice?.remove();
			return;
		}
		if (!notice) {
			notice = document.createElement("p");
			notice.id = "unread";
			notice.className = "notice bad";
			notice.setAttribute("role", "status");
			document.getElementById("main").prepend(notice);
		}
		if (notice.textContent !== text) {
			notice.textContent = text;
		}
	}

	// addPause offers to stop reading: what moves can be stopped.
	function addPause() {
		const place = document.getElementById("pause");
		if (!place || place.firstChild) {
			return;
		}
		const button = document.createElement("button");
		button.type = "button";
		button.textContent = stopped ? "Go on" : "Stop here";
		button.addEventListener("click", () => {
			stopped = !stopped;
			button.textContent = stopped ? "Go on" : "Stop here";
			look();
		});
		place.append(" ", button);
	}

	// addCopiers offers to copy what is to be copied.
	function addCopiers(within) {
		for (const block of within.querySelectorAll(".copy")) {
			if (block.querySelector(".copier") || !navigator.clipboard) {
				continue;
			}
			const button = document.createElement("button");
			button.type = "button";
			button.className = "copier";
			button.textContent = "Copy";
			button.addEventListener("click", async () => {
				try {
					await navigator.clipboard.writeText(block.querySelector("code").textContent);
					button.textContent = "Copied";
				} catch {
					button.textContent = "Select it, and copy it by hand";
				}
			});
			block.append(button);
		}
	}

	// A press on Escape closes what is open above the page.
	document.addEventListener("keydown", (event) => {
		const open = document.querySelector("details.press[open]");
		if (event.key === "Escape" && open) {
			open.open = false;
			open.querySelector("summary").focus();
		}
	});

	document.addEventListener("visibilitychange", () => {
		if (!document.hidden) {
			look();
		}
	});

	addPause();
	addCopiers(document);
	timer = setTimeout(look, pause);
})();
