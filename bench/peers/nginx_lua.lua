-- The gateway's rules for a write key, as fast as they go in nginx: what is rare
-- is looked for only where there is a sign of it.
local find, sub, byte, lower = string.find, string.sub, string.byte, string.lower
local var, req = ngx.var, ngx.req

local function refuse(status, code, message)
	ngx.status = status
	ngx.header["Content-Type"] = "application/json"
	ngx.print('{"error":"', code, '","message":"', message, '"}')
	return ngx.exit(status)
end

local function trim(key)
	local from, to = 1, #key
	while from <= to and find(sub(key, from, from), "[ \t\r\n]") do from = from + 1 end
	while to >= from and find(sub(key, to, to), "[ \t\r\n]") do to = to - 1 end
	return sub(key, from, to)
end

-- clean cuts a key at its # and trims it.
local function clean(key)
	local at = find(key, "#", 1, true)
	if at then key = sub(key, 1, at - 1) end
	local first, last = byte(key, 1), byte(key, -1)
	if first and (first <= 32 or last <= 32) then return trim(key) end
	return key
end

-- unescape decodes a part of a query; nil if it has a bad escape.
local function unescape(text)
	if find(text, "%", 1, true) then
		if find(text, "%%[^%x]") or find(text, "%%%x[^%x]") or find(text, "%%%x?$") then return nil end
		return ngx.unescape_uri(text)
	end
	if find(text, "+", 1, true) then return ngx.unescape_uri(text) end
	return text
end

-- key_value is the value of a parameter, if that is td_write_key.
local function key_value(param)
	local at = find(param, "=", 1, true)
	local name = at and sub(param, 1, at - 1) or param
	if name ~= "td_write_key" and not (find(name, "%", 1, true) and unescape(name) == "td_write_key") then
		return nil
	end
	return at and sub(param, at + 1) or ""
end

-- cut takes every td_write_key out of a query: what is left, the first key that is
-- not empty, and whether that has a bad escape.
local function cut(query)
	local rest, key, bad, from, any = nil, "", false, 1, false
	while from <= #query + 1 do
		local at = find(query, "&", from, true) or #query + 1
		local param = sub(query, from, at - 1)
		local value = key_value(param)
		if not value then
			rest = rest and rest .. "&" .. param or param
			any = any or param ~= ""
		elseif key == "" and not bad then
			local hash = find(value, "#", 1, true)
			if hash then value = sub(value, 1, hash - 1) end
			local decoded = unescape(value)
			if decoded then key = clean(decoded) else bad = true end
		end
		from = at + 1
	end
	return any and rest or "", key, bad
end

-- first is the first value of a header, cleaned, that is not empty and that use
-- takes.
local function first(name, use)
	local values = req.get_headers(0)[name]
	if type(values) ~= "table" then values = { values } end
	for _, value in ipairs(values) do
		local found = use(value)
		if found ~= "" then return found end
	end
	return ""
end

local function td1(value)
	value = clean(value)
	local key = #value > 3 and lower(sub(value, 1, 3)) == "td1" and find(sub(value, 4, 4), "[ \t]") and trim(sub(value, 5))
	return key and key ~= "" and "TD1 " .. key or ""
end

local function good(key)
	return #key <= 1024 and ngx.re.find(key, [=[\A[!#-&(-+\--~]+\z]=], "jo") and find(key, "/", 1, true) ~= #key
end

local function check(key)
	if not good(key) then
		return refuse(400, "invalid_write_key", "the write key has a byte that no key has, no secret, or more than 1024 bytes")
	end
end

-- move_key finds the key that v2 would use, checks it, and takes all from the query.
local function move_key()
	local rest, param, bad = "", "", false
	local query = var.args
	if query then rest, param, bad = cut(query) end

	local key = var.http_x_td_write_key
	key = key and clean(key)
	if key == "" then key = first("X-TD-Write-Key", clean) end

	if key and key ~= "" then
		if param == "" and not bad then -- v2 prefers Authorization, if there is one
			local authorization = var.http_authorization and first("Authorization", td1) or ""
			if authorization == "" then
				check(key)
			else
				check(sub(authorization, 5))
				var.authorization = authorization
				key = good(key) and key or ""
			end
		else
			check(key)
		end
		var.write_key = key
	elseif bad then
		return refuse(400, "invalid_write_key", "the td_write_key parameter has a bad percent-escape")
	elseif param ~= "" then
		check(param)
		var.write_key = param
	else
		local authorization = var.http_authorization and first("Authorization", td1) or ""
		if authorization == "" then
			return refuse(403, "missing_write_key", "send a write key, as td_write_key in the URL or as X-TD-Write-Key")
		end
		check(sub(authorization, 5))
		var.authorization = authorization
	end
	req.set_uri_args(rest)
end

-- mend_type looks at a type whole only if it is not the usual one, and at the body
-- only if the type says nothing of it.
local function mend_type()
	local sent = var.http_content_type
	if sent ~= "application/json" then
		local media = lower(trim((string.match(sent or "", "^[^;]*"))))
		if media == "" or media == "text/plain" or media == "text/ping" or media == "application/x-www-form-urlencoded" then
			req.read_body()
			local body = req.get_body_data()
			local file = not body and req.get_body_file()
			if file then
				local opened = assert(io.open(file, "rb"))
				body = opened:read("*a")
				opened:close()
			end
			if body and find(body, "^[ \t\r\n]*{") then
				req.set_header("Content-Type", "application/json")
			end
		end
	end
end

return function()
	if var.request_method ~= "POST" then
		ngx.header["Allow"] = "POST"
		return refuse(405, "method_not_allowed", "send a POST")
	end
	move_key()
	mend_type()
end
